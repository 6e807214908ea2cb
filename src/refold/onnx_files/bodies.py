"""The graphs inside a file's nodes (If, Loop, Scan): each is folded as a file of its own.

What a body reads from outside becomes an input there, or a weight where no input decides it. Both
forms of it run in ONNX Runtime; a body that cannot be checked so stays as it is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from refold.errors import InputError, NotEquivalentError, RefoldError
from refold.exporting import require
from refold.graph import Fold, Kept
from refold.onnx_files.constants import Constants, constants_of, sizes_of
from refold.onnx_files.reading import (
    LAYERS,
    OnnxFile,
    captured,
    is_external,
    read,
    subgraphs,
    title,
)
from refold.onnx_files.report import OnnxReport
from refold.onnx_files.saving import tensors
from refold.onnx_files.sizes import Sizes
from refold.onnx_files.tensors import to_proto
from refold.onnx_files.writing import rename

_LIMIT = 1_500_000_000  # bytes of a body that is written as a file of its own

FoldFile = Callable[[Path, Path], OnnxReport]
"""Folds one file into another."""


class Bodies(NamedTuple):
    """What was folded inside the nodes of a file, and what was left."""

    steps: tuple[Fold, ...] = ()
    kept: tuple[Kept, ...] = ()


def fold_bodies(file: OnnxFile, fold: FoldFile) -> Bodies:
    """Fold the graphs inside the nodes of a file, in place.

    Args:
        file: what was read.
        fold: folds a file.
    """
    found = list(_bodies(file))
    if not found:
        return Bodies()
    sizes = sizes_of(file)
    outside = _Outside(file, sizes, constants_of(file, sizes), _names(file.model.graph))
    steps, kept = list[Fold](), list[Kept]()
    for where, body in found:
        try:
            report = _fold(body, outside, fold)
        except NotEquivalentError as error:
            kept.append(Kept(where, f"its body gave another answer and stays: {error}"))
        except (RefoldError, ValueError):
            kept.append(Kept(where, _UNCHECKED))
        else:
            steps += [replace(step, where=f"{where}.{step.where}") for step in report.steps]
            kept += [replace(item, where=f"{where}.{item.where}") for item in report.kept]
    return Bodies(tuple(steps), tuple(kept))


_UNCHECKED = (
    "its body cannot be run alone on random inputs, so no fold of it could be checked: it stays"
)


def _bodies(file: OnnxFile) -> Iterator[tuple[str, Any]]:
    """Yield the graphs inside nodes that hold layers, each with its place."""
    for node in file.nodes:
        for attribute in node.attribute:
            if attribute.HasField("g") and _has_layers(attribute.g):
                yield f"{title(node)}.{attribute.name}", attribute.g


def _has_layers(graph: Any) -> bool:
    return any(
        node.op_type in LAYERS or any(map(_has_layers, subgraphs(node))) for node in graph.node
    )


def _names(graph: Any) -> set[str]:
    """Return every name that a value has in a graph or below it."""
    found = {value.name for value in (*graph.input, *graph.initializer)}
    for node in graph.node:
        found.update(node.output)
        found.update(*map(_names, subgraphs(node)))
    return found


class _Outside(NamedTuple):
    """What is around a body."""

    file: OnnxFile
    sizes: Sizes
    constants: Constants
    names: set[str]


def _fold(body: Any, outside: _Outside, fold: FoldFile) -> OnnxReport:
    """Fold one body in place.

    Raises:
        InputError: when it cannot be run by itself.
    """
    if any(map(is_external, tensors(body))):
        raise InputError("its weights lie outside the file")
    alone, known = _alone(body, outside)
    if alone.ByteSize() > _LIMIT:
        raise InputError("it is too large to be run by itself")
    with tempfile.TemporaryDirectory(prefix="refold-") as folder:
        source, out = Path(folder) / "body.onnx", Path(folder) / "folded.onnx"
        source.write_bytes(alone.SerializeToString())
        report = fold(source, out)
        if report.changed:
            made = read(out).model.graph
            _rename_new(made, _names(alone.graph), outside.names)
            del body.node[:], body.initializer[:], body.value_info[:]
            body.node.extend(made.node)
            body.initializer.extend(t for t in made.initializer if t.name not in known)
            body.value_info.extend(made.value_info)
    return report


def _alone(body: Any, outside: _Outside) -> tuple[Any, set[str]]:
    """Return a body as a model of its own, and which of its weights are those around it."""
    onnx = require("onnx", "onnx")
    file, known = outside.file.model, set[str]()
    alone = onnx.ModelProto(ir_version=max(file.ir_version, 4))
    alone.opset_import.extend(file.opset_import)
    alone.functions.extend(file.functions)
    alone.graph.CopyFrom(body)
    for name in sorted(captured(body)):
        constant = outside.constants.value(name)
        if constant is not None:
            alone.graph.initializer.append(to_proto(constant, name))
            known.add(name)
            continue
        shape = outside.sizes.shapes.get(name)
        others = outside.sizes.others.get(name)
        code = outside.sizes.types.get(name)
        if code is None or shape is None or others is None or len(shape) != len(others):
            raise InputError(f"nothing is known of {name!r}")
        pairs = zip(shape, others, strict=True)
        axes = [one if one == other else f"size_{one}_{other}" for one, other in pairs]
        alone.graph.input.append(onnx.helper.make_tensor_value_info(name, code, axes))
    return alone, known


def _rename_new(graph: Any, own: set[str], taken: set[str]) -> None:
    """Give values that a fold made names that nothing around the body has."""
    names: dict[str, str] = {}
    for name in sorted(_names(graph) - own):
        count, free = 0, name
        while free in taken:
            count += 1
            free = f"{name}_{count}"
        taken.add(free)
        if free != name:
            names[name] = free
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for below in subgraphs(node):
            rename(below, names)
