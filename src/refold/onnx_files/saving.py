"""Write a folded file: what lies outside it stays outside and is copied piece by piece."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refold.errors import InputError
from refold.exporting import require
from refold.files import require_apart, require_named, require_place
from refold.onnx_files.reading import OnnxFile, is_external, subgraphs
from refold.onnx_files.tensors import pieces, place_of
from refold.onnx_files.translation.network import inner_reads
from refold.onnx_files.writing import Written, reads

_PIECE = 1 << 24
_SMALL = 1024  # bytes that stay inside
_LIMIT = 2_000_000_000  # bytes that one protobuf may hold
_OWN_INPUTS = 4  # the version of the format from which weights need not be inputs


def companion(path: Path) -> str:
    """Return the name of the file that holds the weights of an ONNX file, where it has one."""
    return f"{path.name}.data"


def apply(file: OnnxFile, written: Written) -> None:
    """Put the folded graph in place of the old one, and drop what it no longer needs."""
    graph = file.model.graph
    del graph.node[:]
    graph.node.extend(written.nodes)
    file.nodes = list(graph.node)
    if file.model.ir_version < _OWN_INPUTS:
        onnx = require("onnx", "onnx")
        graph.input.extend(
            onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims))
            for t in written.tensors
        )
    file.large = written.large
    written.tensors.reverse()
    while written.tensors:  # one at a time: each is copied, and may be large
        graph.initializer.append(written.tensors.pop())
    _share(file)
    read = {name for node in file.nodes for name in reads(node)}
    read.update(value.name for value in graph.output)
    gone = {t.name for t in graph.initializer if t.name in file.was_read and t.name not in read}
    _drop(graph.initializer, "name", gone)
    _drop(graph.input, "name", gone)
    known = {name for node in file.nodes for name in node.output}
    known.update(value.name for value in (*graph.input, *graph.initializer))
    _drop(graph.value_info, "name", {value.name for value in graph.value_info} - known)
    notes = graph.quantization_annotation
    _drop(notes, "tensor_name", {note.tensor_name for note in notes} - known)


def _share(file: OnnxFile) -> None:
    """Let nodes that read equal small weights read one of them: a runtime would see to it."""
    graph = file.model.graph
    inner = set[str]().union(*map(inner_reads, file.nodes))
    fixed = inner.union(value.name for value in graph.output)
    if file.model.ir_version >= _OWN_INPUTS:
        fixed.update(value.name for value in graph.input)
    known: dict[object, str] = {}
    same: dict[str, str] = {}
    for tensor in graph.initializer:
        if (
            tensor.name in fixed
            or tensor.name in file.large
            or is_external(tensor)
            or tensor.ByteSize() > _SMALL
        ):
            continue
        bare = type(tensor)()
        bare.CopyFrom(tensor)
        bare.ClearField("name")
        first = known.setdefault(bare.SerializeToString(deterministic=True), tensor.name)
        if first != tensor.name:
            same[tensor.name] = first
    for node in file.nodes:
        if same.keys() & set(node.input):
            node.input[:] = [same.get(name, name) for name in node.input]


def _drop(items: Any, key: str, gone: set[str]) -> None:
    for at in reversed(range(len(items))):
        if getattr(items[at], key) in gone:
            del items[at]


def require_other(file: OnnxFile, output: str | os.PathLike[str]) -> None:
    """Refuse a place that cannot be written, or that holds what is read.

    Raises:
        InputError: when its name is not that of an .onnx file, or when it is the file itself or
            the weights beside it.
    """
    require_named("output", output)
    if Path(output).suffix.lower() != ".onnx":
        raise InputError(f"{output} would hold an ONNX file: end its name in .onnx")
    require_place(output)
    require_apart(output, parts_of(file), [companion(Path(output))])


def parts_of(file: OnnxFile) -> list[Path]:
    """Return the file itself, and those beside it that hold weights.

    Raises:
        InputError: when one of those is missing, or lies outside the folder.
    """
    outside = [place_of(t, file.folder).path for t in tensors(file.model.graph) if is_external(t)]
    return list(dict.fromkeys([file.path, *outside]))


def has_weights_outside(file: OnnxFile) -> bool:
    """Say whether any of a file's weights lie beside it."""
    return any(is_external(tensor) for tensor in tensors(file.model.graph))


def save(file: OnnxFile, path: Path, *, outside: bool) -> None:
    """Write a model, and beside it its weights where they are to lie there or do not fit inside."""
    model = file.model
    size = model.ByteSize() + sum(tensor.nbytes for tensor in file.large.values())
    if outside or size > _LIMIT:
        with path.with_name(companion(path)).open("wb") as stream:
            for tensor in tensors(model.graph):
                _move(tensor, file, stream, companion(path))
    else:
        for tensor in model.graph.initializer:
            if tensor.name in file.large:
                tensor.raw_data = b"".join(pieces(file.large[tensor.name]))
    path.write_bytes(model.SerializeToString())


def copy_of(file: OnnxFile, path: Path) -> None:
    """Write a file as it was read."""
    if has_weights_outside(file):
        save(file, path, outside=True)
    else:
        shutil.copyfile(file.path, path)


def tensors(graph: Any) -> Iterator[Any]:
    """Yield the weights of a graph, those of Constant nodes and subgraphs included."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
        for below in subgraphs(node):
            yield from tensors(below)


def _move(tensor: Any, file: OnnxFile, stream: Any, name: str) -> None:
    """Write the numbers of one tensor into a stream and let it point there."""
    held = file.large.get(tensor.name)
    if held is None and not is_external(tensor) and len(tensor.raw_data) <= _SMALL:
        return
    stream.write(b"\0" * (-stream.tell() % 4096))  # as onnx aligns them, to be mapped
    start = stream.tell()
    if held is not None:
        for piece in pieces(held):
            stream.write(piece)
    elif is_external(tensor):
        place = place_of(tensor, file.folder)
        with place.path.open("rb") as source:
            source.seek(place.offset)
            left = place.length
            while left and (piece := source.read(min(left, _PIECE))):
                stream.write(piece)
                left -= len(piece)
    else:
        stream.write(tensor.raw_data)
        tensor.ClearField("raw_data")
    del tensor.external_data[:]
    for key, value in (("location", name), ("offset", start), ("length", stream.tell() - start)):
        tensor.external_data.add(key=key, value=str(value))
    tensor.data_location = 1
