"""An ONNX file as it is on disk: read, and checked to be sound.

The protobuf itself is kept, so that whatever is not touched is written back as it was.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from refold.errors import InputError, one_line
from refold.exporting import require
from refold.files import is_file

DEFAULT = ("", "ai.onnx")
"""The names of the domain of ONNX's own operators."""
LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"})
"""What is worth a look inside a node."""
_OLDEST = 7
_QUANTIZED = re.compile(r"Q(uantize)?Linear|Dequantize|Integer$|^DynamicQuantize")
_EXTERNAL = 1  # TensorProto.EXTERNAL


@dataclass(eq=False)
class OnnxFile:
    """A file that was read.

    Args:
        path: where it lies.
        model: its ModelProto; weights outside the file are not loaded.
        opset: version of ONNX's own operators that it uses.
    """

    path: Path
    model: Any
    opset: int

    def __post_init__(self) -> None:
        self.large: dict[str, Any] = {}  # the numbers of new weights that hold none yet
        self.computed: dict[object, Any] = {}  # what was computed of small constants
        self.nodes: list[Any] = list(self.model.graph.node)  # alive, so that each has one identity
        self.was_read = set[str]()  # by any of them, also inside
        for node in self.nodes:
            self.was_read.update(node.input, *map(captured, subgraphs(node)))

    @property
    def folder(self) -> Path:
        """Where tensors outside the file lie."""
        return self.path.parent


def read(path: str | os.PathLike[str]) -> OnnxFile:
    """Read a file and check that it holds together.

    Raises:
        InputError: when it does not, or is not an ONNX file.
        MissingDependencyError: without onnx.
    """
    place = Path(path)
    if not is_file(place):
        raise InputError(f"there is no file {str(path)!r}: give an .onnx file")
    onnx = require("onnx", "onnx")
    try:
        model = onnx.load_model(str(place), format="protobuf", load_external_data=False)
    except Exception as error:  # protobuf's own, without a common base
        reason = one_line(error).removeprefix("Error parsing message with type ")
        raise InputError(
            f"{path} cannot be read as ONNX ({reason}): it is damaged, or not an .onnx file"
        ) from error
    try:
        _check_names(model.graph)
        _check(model)
        return OnnxFile(place, model, _opset(model))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _opset(model: Any) -> int:
    found = [item.version for item in model.opset_import if item.domain in DEFAULT]
    onnx = require("onnx", "onnx")
    newest = int(onnx.defs.onnx_opset_version())
    if not found and all(node.domain not in DEFAULT for node in model.graph.node):
        return newest
    if not found:
        raise InputError(
            "it imports no opset of ONNX's own operators, so they have no meaning: "
            "the file is damaged or incomplete"
        )
    if not _OLDEST <= found[0] <= newest:
        raise InputError(
            f"it uses opset {found[0]}; refold reads {_OLDEST} to {newest}: "
            "convert it with onnx.version_converter"
        )
    return found[0]


def _check_names(graph: Any) -> None:
    """Refuse names that are not text, which protobuf hands out as bytes or not at all."""
    try:
        names = [value.name for value in (*graph.input, *graph.output, *graph.initializer)]
        for node in graph.node:
            names += [node.op_type, node.name, node.domain, *node.input, *node.output]
            names += [attribute.name for attribute in node.attribute]
        sound = all(isinstance(name, str) for name in names)
    except UnicodeDecodeError:
        sound = False
    if not sound:
        raise InputError("a name in it is not text: the file is damaged")
    for node in graph.node:
        for below in subgraphs(node):
            _check_names(below)


def quantized_reason(file: OnnxFile) -> str | None:
    """Return why a quantized file stays as it is, None for any other."""
    node = next((node for node in file.nodes if _QUANTIZED.search(node.op_type)), None)
    if node is None:
        return None
    return (
        f"it is quantized ({node.op_type} {node.name!r}): a fold would change what "
        "the quantizer measured; fold the float model, then quantize"
    )


def inlined(file: OnnxFile) -> OnnxFile:
    """Return a file with the functions of its own that hold layers written out in its graph."""
    held = _functions_of_layers(file.model)
    if not held:
        return file
    inliner = require("onnx.inliner", "onnx")
    try:
        made = inliner.inline_selected_functions(file.model, sorted(held))
    except Exception:  # then they stay what they are: nodes that nobody knows
        return file
    return OnnxFile(file.path, made, file.opset)


def calls_of_layers(file: OnnxFile) -> list[Any]:
    """Return the nodes that call functions which hold layers, where none was written out."""
    held = _functions_of_layers(file.model)
    return [node for node in file.nodes if (node.domain, node.op_type) in held]


def _functions_of_layers(model: Any) -> set[tuple[str, str]]:
    """Return the functions of a file that hold layers, or call one that does."""
    functions = {(f.domain, f.name): f for f in model.functions}
    held = set[tuple[str, str]]()
    while True:
        more = {key for key, f in functions.items() if key not in held and _has(f, held)}
        if not more:
            return held
        held |= more


def _has(function: Any, held: set[tuple[str, str]]) -> bool:
    """Say whether a function holds layers, or calls one that does."""
    return any(
        (node.domain in DEFAULT and node.op_type in LAYERS) or (node.domain, node.op_type) in held
        for node in function.node
    )


def damage(model: Any) -> str | None:
    """Return what onnx's own checker finds wrong with a model, None where it is sound."""
    onnx = require("onnx", "onnx")
    try:
        onnx.checker.check_model(model)
    except Exception as error:
        return one_line(error)
    return None


def _check(model: Any) -> None:
    graph = model.graph
    if not model.ir_version or not graph.node or not graph.output:
        raise InputError("it holds no network: the file is damaged or incomplete")
    known = _given(graph)
    for node in graph.node:
        for name in chain(node.input, *map(captured, subgraphs(node))):
            if name and name not in known:
                raise InputError(
                    f"{title(node)} reads {name!r} before any node computes it: the file is damaged"
                )
        for name in filter(None, node.output):
            if name in known:
                raise InputError(f"{name!r} is computed twice, the second time by {title(node)}")
            known.add(name)
    missing = [value.name for value in graph.output if value.name not in known]
    if missing:
        raise InputError(f"no node computes its output {missing[0]!r}: the file is damaged")


def _given(graph: Any) -> set[str]:
    """Return the values that a graph has before its first node runs."""
    given = {value.name for value in graph.input}
    given.update(tensor.name for tensor in graph.initializer)
    given.update(tensor.values.name for tensor in graph.sparse_initializer)
    return given


def title(node: Any) -> str:
    """Return what messages call a node: its name, else that of its first output."""
    return node.name or next(filter(None, node.output), node.op_type)


def subgraphs(node: Any) -> Iterator[Any]:
    """Yield the graphs that a node (If, Loop, Scan) holds."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def captured(graph: Any) -> set[str]:
    """Return the values from outside that a subgraph reads, at any depth."""
    own = _given(graph)
    found = set[str]()
    for node in graph.node:
        for name in chain(node.input, *map(captured, subgraphs(node))):
            if name and name not in own:
                found.add(name)
        own.update(node.output)
    found.update(value.name for value in graph.output if value.name not in own)
    return found


def attributes(node: Any) -> dict[str, Any]:
    """Return the attributes of a node as plain values, tensors and graphs as they are."""
    onnx = require("onnx", "onnx")
    found: dict[str, Any] = {}
    for item in node.attribute:
        value = onnx.helper.get_attribute_value(item)
        found[item.name] = value.decode() if isinstance(value, bytes) else value
    return found


def is_external(tensor: Any) -> bool:
    """Say whether a tensor's numbers lie outside the file."""
    return bool(tensor.data_location == _EXTERNAL)
