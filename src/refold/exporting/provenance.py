"""Where a file comes from: written into it, and read from it again."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree

import safetensors

from refold.errors import InputError, one_line
from refold.exporting.formats.appendix import appended
from refold.exporting.libraries import require
from refold.exporting.silence import mute
from refold.files import is_file
from refold.torch_versions import EXTRA_MEMBER

PREFIX = "refold."
"""Begins the keys of ONNX and safetensors, which others write to as well."""
VERSION = "refold"
"""The key of the version itself."""
ABOUT = "refold_about"
"""The key of the entry that says what the network is for, in every format; its value is JSON."""
PRECISION = "precision"
"""The key of what a file computes in, where that is not the precision of its network."""
PT2_ENTRY = "provenance.json"
"""The extra file in a .pt2 archive."""
PTE_METHOD = "refold_provenance"
"""The method of a .pte that returns it."""


def version() -> str:
    """Return refold's own version."""
    try:
        return metadata.version("refold")
    except metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"


def without_folders(name: str) -> str:
    """Return a MODEL's name without the folders of this machine.

    Examples:
        >>> without_folders("/home/ann/secret/net.py:build"), without_folders("timm:resnet18")
        ('net.py:build', 'timm:resnet18')
    """
    kind, colon, rest = name.partition(":")
    if Path(name).is_absolute():
        return Path(name).name
    return f"{kind}{colon}{Path(rest).name}" if Path(rest).is_absolute() else name


def keyed(provenance: Mapping[str, str]) -> dict[str, str]:
    """Return the provenance under keys that clash with no others."""
    return {VERSION: version()} | {f"{PREFIX}{key}": text for key, text in provenance.items()}


def unkeyed(pairs: Mapping[str, str]) -> dict[str, str]:
    """Return what `keyed` wrote among the metadata of a file.

    Examples:
        >>> unkeyed({"format": "pt"} | keyed({"source": "net.py:build"}))["source"]
        'net.py:build'
    """
    found = {"version": pairs[VERSION]} if VERSION in pairs else {}
    return found | {
        key[len(PREFIX) :]: text for key, text in pairs.items() if key.startswith(PREFIX)
    }


def read_provenance(path: Path) -> dict[str, str]:
    """Return what a file says of where it comes from; empty if refold did not write it.

    Nothing of the network is loaded or run.

    Raises:
        InputError: when it is not a file of its suffix.
        MissingDependencyError: for .onnx without onnx.
    """
    entries = read_entries(path)
    about = parse_about(entries, path)  # .xml has one place for all
    found = unkeyed(entries)
    return {key: text for key, text in found.items() if key not in (ABOUT, *about)}


def parse_about(entries: Mapping[str, str], path: Path) -> dict[str, Any]:
    """Return what entries of a file say its network is for; nothing where they do not.

    Raises:
        InputError: when the entry is damaged.
    """
    text = entries.get(ABOUT) or entries.get(f"{PREFIX}{ABOUT}")
    try:
        return json.loads(text) if text else {}
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}") from error


def read_entries(path: Path) -> dict[str, str]:
    """Return what a file says of itself, by key, whoever wrote it; in `.xml` our own place alone.

    Raises:
        InputError: when it is not a file of its suffix.
        MissingDependencyError: for .onnx without onnx.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path} says nothing of its origin: give {', '.join(_READERS)}")
    if not is_file(path):
        raise InputError(f"there is no file {str(path)!r}: give one of refold's")
    try:
        return reader(path)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, ElementTree.ParseError) as error:
        raise InputError(f"{path} cannot be read as {path.suffix}: {one_line(error)}") from error


def _from_onnx(path: Path) -> dict[str, str]:
    onnx = require("onnx", "onnx")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own, without a common base
        raise ValueError(one_line(error)) from error
    return {item.key: item.value for item in model.metadata_props}


def _from_openvino(path: Path) -> dict[str, str]:
    root = ElementTree.parse(path).getroot().find("rt_info/refold")
    entries = {} if root is None else {item.tag: item.get("value", "") for item in root}
    return {VERSION if key == "version" else f"{PREFIX}{key}": v for key, v in entries.items()}


def _from_safetensors(path: Path) -> dict[str, str]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise ValueError(one_line(error)) from error


def _from_pt2(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if EXTRA_MEMBER.search(name)]
        entries = {name.rpartition("/")[2]: archive.read(name).decode() for name in names}
    found: Any = json.loads(entries.pop(PT2_ENTRY, "{}"))
    pairs = cast(dict[object, object], found) if isinstance(found, dict) else {}
    return entries | {str(key): str(text) for key, text in pairs.items()}


def _from_executorch(path: Path) -> dict[str, str]:
    content = path.read_bytes()  # which the program stands on
    try:
        with mute():
            runtime = require("executorch.runtime", "executorch")
            program = runtime.Runtime.get().load_program(content)
            if PTE_METHOD not in program.method_names:
                return appended(path)
            [text] = program.load_method(PTE_METHOD).execute([])
    except RuntimeError as error:
        raise ValueError(one_line(error)) from error
    return json.loads(text) | appended(path)


_READERS = {
    ".onnx": _from_onnx,
    ".xml": _from_openvino,
    ".safetensors": _from_safetensors,
    ".pt2": _from_pt2,
    ".pte": _from_executorch,
    ".tflite": appended,
}
