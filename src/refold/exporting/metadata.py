"""What a file says about itself: plain text by key, in whichever place its format has for it."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from refold.errors import ExportError, InputError, one_line
from refold.exporting.formats.aot import is_compiled, repacked
from refold.exporting.formats.appendix import append
from refold.exporting.formats.signals import own_signal_stack
from refold.exporting.libraries import require
from refold.exporting.provenance import ABOUT, PT2_ENTRY, parse_about, read_entries
from refold.exporting.silence import quiet
from refold.files import atomic_path


def describe(path: str | os.PathLike[str], about: Mapping[str, Any]) -> None:
    """Write into an exported file what it is: its classes, say, and how images are prepared.

    One entry, under `ABOUT`, is JSON; each of its keys is an entry of its own, too, for whoever
    looks at the file with other tools.

    Args:
        path: a file of a format that `SUFFIXES` names; what it computes stays as it is.
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
    write = _format(target)
    entries = {ABOUT: json.dumps(dict(about))}
    entries |= {key: x if isinstance(x, str) else json.dumps(x) for key, x in about.items()}
    try:
        with quiet():
            write(target, entries)
    except Exception as error:
        first = error.__cause__ or error
        raise ExportError(f"nothing can be added to {target.name}: {one_line(first)}") from error


def described(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what `describe` wrote into a file; nothing where it did not.

    Raises:
        InputError: when the format is another one, or the file cannot be read.
    """
    return parse_about(read_entries(Path(path)), Path(path))


def _format(path: Path) -> _Write:
    found = _FORMATS.get(path.suffix.lower())
    if found is None:
        raise InputError(f"{path} is not one of {', '.join(_FORMATS)}")
    return found


def _write_onnx(path: Path, entries: Mapping[str, str]) -> None:
    onnx = require("onnx", "onnx")
    model = onnx.load(path, load_external_data=False)  # what lies beside the file stays there
    known = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**known, **entries})
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


def _write_safetensors(path: Path, entries: Mapping[str, str]) -> None:
    with safetensors.safe_open(path, framework="pt") as file:
        known = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, {**known, **entries})


def _write_pt2(path: Path, entries: Mapping[str, str]) -> None:
    if is_compiled(path):
        content = repacked(path, entries)
    else:
        known = {PT2_ENTRY: ""}  # where the file comes from, which its writer said
        program = torch.export.load(path, extra_files=known)
        stream = io.BytesIO()  # as for the writer: a full disk must not end the process
        torch.export.save(program, stream, extra_files={**known, **entries})
        content = stream.getbuffer()
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _write_openvino(path: Path, entries: Mapping[str, str]) -> None:
    openvino: Any = require("openvino", "openvino")
    with own_signal_stack(), atomic_path(path) as temporary:
        model = openvino.Core().read_model(path)
        for key, value in entries.items():
            model.set_rt_info(value, ["refold", key])
        openvino.serialize(model, temporary, temporary.with_suffix(".bin"))


def _write_behind(path: Path, entries: Mapping[str, str]) -> None:
    with atomic_path(path) as temporary:
        shutil.copyfile(path, temporary)
        append(temporary, entries)


_Write = Callable[[Path, Mapping[str, str]], None]
_FORMATS: dict[str, _Write] = {
    ".onnx": _write_onnx,
    ".safetensors": _write_safetensors,
    ".pt2": _write_pt2,
    ".xml": _write_openvino,
    ".pte": _write_behind,
    ".tflite": _write_behind,
}
