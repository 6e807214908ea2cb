"""The graph that torch's exporter made, before it is written: stripped, and named in our words.

It works on the exporter's own objects (`onnx_ir`), in which a name is an attribute of one value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from refold.exporting.names import unique


def strip(model: Any) -> None:
    """Remove what says how and where the model was made: source lines, paths, classes."""
    for graph in (model.graph, *model.functions.values()):
        for holder in chain([graph], graph.all_nodes(), _values(graph)):
            holder.metadata_props.clear()
            holder.doc_string = None
    model.metadata_props.clear()
    model.doc_string = None


def name_axes(model: Any, shapes: Sequence[tuple[int | str, ...] | None]) -> None:
    """Call free sizes by their names instead of the exporter's symbols, wherever they occur."""
    given = [shape for shape in shapes if shape is not None]
    names: dict[str, str] = {}
    for value, shape in zip(model.graph.inputs, given, strict=True):
        for axis, name in enumerate(shape):
            if isinstance(name, str):
                names[str(value.shape[axis])] = name
    if not names:
        return
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")

    def renamed(size: str) -> str:
        return pattern.sub(lambda found: names[found[1]], size)

    for value in _values(model.graph):
        if value.shape is not None:
            sizes = [size if isinstance(size, int) else renamed(str(size)) for size in value.shape]
            value.shape = type(value.shape)(sizes)  # the old one may be frozen


def name_values(model: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Rename inputs and outputs; another value of such a name gets a number added."""
    ends = [*model.graph.inputs, *model.graph.outputs]
    if len(outputs) != len(model.graph.outputs):  # an output that is not a tensor has a value, too
        ends, outputs = list(model.graph.inputs), ()
    wanted = unique([*inputs, *outputs])
    taken = set(wanted)
    named = {id(value) for value in ends}
    for value in list(_values(model.graph)):
        if id(value) not in named and value.name in taken:
            value.name = unique([value.name], taken | {v.name for v in _values(model.graph)})[0]
    for at, value in enumerate(ends):  # first out of each other's way
        value.name = f"_end_{at}"
    for value, name in zip(ends, wanted, strict=True):
        value.name = name


def _values(graph: Any) -> Iterator[Any]:
    """Yield every value of a graph: inputs, weights, and what its nodes compute."""
    initializers = getattr(graph, "initializers", {})
    yield from chain(graph.inputs, list(initializers.values()))
    for node in graph.all_nodes():
        yield from node.outputs
