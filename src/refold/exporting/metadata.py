"""What a file says of itself: plain text by key, in whichever place its format has for it."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from refold.errors import ExportError, InputError, one_line
from refold.exporting.libraries import require
from refold.exporting.provenance import PT2_ENTRY
from refold.exporting.signals import own_signal_stack
from refold.exporting.silence import quiet
from refold.files import atomic_path

KEY = "refold_about"
"""The key that our own entry has in every format; its value is JSON."""


def describe(path: str | os.PathLike[str], about: Mapping[str, Any]) -> None:
    """Write into an exported file what it is: its classes, say, and how images are prepared.

    One entry, under `KEY`, is JSON; each of its keys is an entry of its own, too, for whoever
    looks at the file with other tools.

    Args:
        path: `.onnx`, `.safetensors`, `.pt2` or `.xml`; what it computes stays as it is.
        about: plain values, as JSON can hold them.

    Raises:
        InputError: when the format is another one.
        ExportError: when the file cannot be rewritten.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> file = Path(folder.name) / "a.safetensors"
        >>> safetensors.torch.save_file({"w": torch.ones(2)}, file)
        >>> describe(file, {"classes": ["ant", "bee"]})
        >>> described(file)
        {'classes': ['ant', 'bee']}
        >>> folder.cleanup()
    """
    target = Path(path)
    write, _ = _format(target)
    entries = {KEY: json.dumps(dict(about))}
    entries |= {key: x if isinstance(x, str) else json.dumps(x) for key, x in about.items()}
    try:
        with quiet():
            write(target, entries)
    except Exception as error:
        raise ExportError(f"nothing can be added to {target}: {one_line(error)}") from error


def described(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what `describe` wrote into a file; nothing where it did not.

    Raises:
        InputError: when the format is another one, or the file cannot be read.
    """
    target = Path(path)
    _, read = _format(target)
    try:
        with quiet():
            text = read(target)
        return json.loads(text) if text else {}
    except Exception as error:
        raise InputError(f"{target} cannot be read: {one_line(error)}") from error


def _format(path: Path) -> tuple[_Write, _Read]:
    found = _FORMATS.get(path.suffix.lower())
    if found is None:
        raise InputError(f"{path} is none of {', '.join(_FORMATS)}")
    return found


def _write_onnx(path: Path, entries: Mapping[str, str]) -> None:
    onnx = require("onnx", "onnx")
    model = onnx.load(path, load_external_data=False)  # what lies beside the file stays there
    known = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**known, **entries})
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


def _read_onnx(path: Path) -> str:
    model = require("onnx", "onnx").load(path, load_external_data=False)
    return next((entry.value for entry in model.metadata_props if entry.key == KEY), "")


def _write_safetensors(path: Path, entries: Mapping[str, str]) -> None:
    with safetensors.safe_open(path, framework="pt") as file:
        known = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, {**known, **entries})


def _read_safetensors(path: Path) -> str:
    with safetensors.safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get(KEY, "")


def _write_pt2(path: Path, entries: Mapping[str, str]) -> None:
    known = {PT2_ENTRY: ""}  # where the file comes from, which its writer said
    program = torch.export.load(path, extra_files=known)
    content = io.BytesIO()  # as for the writer: a full disk must not end the process
    torch.export.save(program, content, extra_files={**known, **entries})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def _read_pt2(path: Path) -> str:
    extra = {KEY: ""}
    torch.export.load(path, extra_files=extra)
    return extra[KEY]


def _write_openvino(path: Path, entries: Mapping[str, str]) -> None:
    openvino: Any = require("openvino", "openvino")
    with own_signal_stack(), atomic_path(path) as temporary:
        model = openvino.Core().read_model(path)
        for key, value in entries.items():
            model.set_rt_info(value, ["refold", key])
        openvino.serialize(model, temporary, temporary.with_suffix(".bin"))


def _read_openvino(path: Path) -> str:
    openvino: Any = require("openvino", "openvino")
    with own_signal_stack():
        model = openvino.Core().read_model(path)
        place = ["refold", KEY]
        return model.get_rt_info(place).astype(str) if model.has_rt_info(place) else ""


_Write = Callable[[Path, Mapping[str, str]], None]
_Read = Callable[[Path], str]
_FORMATS: dict[str, tuple[_Write, _Read]] = {
    ".onnx": (_write_onnx, _read_onnx),
    ".safetensors": (_write_safetensors, _read_safetensors),
    ".pt2": (_write_pt2, _read_pt2),
    ".xml": (_write_openvino, _read_openvino),
}
