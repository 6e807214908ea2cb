"""The types and shapes of a file's values, inferred for two choices of its free sizes.

Shapes decide what is a channel and whether a sum broadcasts. Free sizes are given numbers that no
constant of a network is likely to equal, and others the second time: what differs is free.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from refold.exporting import require
from refold.onnx_files.reading import subgraphs

Shape = tuple[int, ...]
_SMALL = 1024  # numbers that a shape may be computed from
_SAME_SHAPE = frozenset(
    (
        *("Gelu", "FastGelu", "QuickGelu", "BiasGelu", "BiasSoftmax", "GroupNorm"),
        *("SkipGroupNorm", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
    )
)
"""Operators of ONNX Runtime's own domain whose first output has the shape of their first input."""
_FUSED = {"FusedConv": "Conv", "FusedGemm": "Gemm"}
_BATCHES = (13, 19)
_SIDES = ((352, 416, 544, 608, 736, 928), (992, 1184, 1312, 1376, 1504, 1696))


@dataclass(eq=False)
class Sizes:
    """What is known of the values of the main graph.

    Args:
        types: ONNX's element type, by value.
        shapes: for the first choice of the free sizes.
        others: for the second.
    """

    types: dict[str, int]
    shapes: dict[str, Shape]
    others: dict[str, Shape]

    def fixed(self, name: str) -> tuple[int | None, ...] | None:
        """Return a value's shape, None for each free size."""
        one, other = self.shapes.get(name), self.others.get(name)
        if one is None or other is None or len(one) != len(other):
            return None
        return tuple(a if a == b else None for a, b in zip(one, other, strict=True))


def infer(model: Any) -> Sizes:
    """Return the types and shapes that onnx's own inference tells of a ModelProto."""
    found = [_inferred(model, choice) for choice in (0, 1)]
    types = {name: code for name, (code, _) in found[0].items() if code}
    shapes, others = (
        {name: shape for name, (_, shape) in values.items() if shape is not None}
        for values in found
    )
    return Sizes(types, shapes, others)


def outputs_of(
    node: Any, model: Any, inputs: Mapping[str, tuple[int, Shape]], data: Mapping[str, Any]
) -> dict[str, tuple[int, Shape | None]]:
    """Return the types and shapes of what one node makes.

    Args:
        node: the NodeProto; nothing is told of one that holds graphs.
        model: the ModelProto it is of.
        inputs: type and shape of each value that it reads.
        data: the constants among them, as TensorProtos.
    """
    onnx = require("onnx", "onnx")
    if node.domain == "com.microsoft" and node.op_type in _SAME_SHAPE:
        return {node.output[0]: inputs[node.input[0]]}
    opset = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in model.opset_import}
    domain = "" if node.domain == "ai.onnx" else node.domain
    if any(subgraphs(node)) or domain not in opset:
        return {}
    given = {
        name: onnx.helper.make_tensor_type_proto(code, shape)
        for name, (code, shape) in inputs.items()
    }
    if node.domain == "com.microsoft" and node.op_type in _FUSED:
        node, domain = _plain(node), ""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset[domain], domain)
        imports = [onnx.helper.make_opsetid(d, v) for d, v in opset.items()]
        made = onnx.shape_inference.infer_node_outputs(
            schema, node, given, dict(data), opset_imports=imports, ir_version=model.ir_version
        )
    except Exception:  # a file may hold anything; what is not told stays unknown
        return {}
    return {name: _of_type(told) for name, told in made.items() if told.HasField("tensor_type")}


def _plain(node: Any) -> Any:
    """Return the layer that a node is which also applies a function."""
    onnx = require("onnx", "onnx")
    made = onnx.NodeProto(op_type=_FUSED[node.op_type], input=node.input, output=node.output)
    made.attribute.extend(a for a in node.attribute if not a.name.startswith("activation"))
    return made


def free_sizes(model: Any) -> dict[str, tuple[int | str, ...]]:
    """Return the shape of each input that must be given; a free size is its name."""
    stored = {tensor.name for tensor in model.graph.initializer}
    found: dict[str, tuple[int | str, ...]] = {}
    for value in model.graph.input:
        told = value.type.tensor_type
        if value.name in stored or not told.HasField("shape"):
            continue
        shape = value.type.tensor_type.shape
        found[value.name] = tuple(
            size.dim_value if size.dim_value > 0 else _named(size, value.name, axis)
            for axis, size in enumerate(shape.dim)
        )
    return found


def inferred_batch(model: Any) -> int | None:
    """Return how many examples the first choice of free sizes has; None where other axes are free.

    A file whose sizes are all fixed is taken as one example.
    """
    sizes = [
        (axis, size) for shape in free_sizes(model).values() for axis, size in enumerate(shape)
    ]
    free = {axis for axis, size in sizes if isinstance(size, str)}
    return 1 if not free else _BATCHES[0] if free == {0} else None


def _named(size: Any, name: str, axis: int) -> str:
    text = str(size.dim_param)
    return text if text.strip("?-1 ") else f"{name}:{axis}"


def _inferred(model: Any, choice: int) -> dict[str, tuple[int, Shape | None]]:
    onnx = require("onnx", "onnx")
    light = _light(model, _chosen(free_sizes(model), choice))
    for options in ({"data_prop": True}, {"data_prop": False}):
        try:
            done = onnx.shape_inference.infer_shapes(light, **options)
        except Exception:  # a file may hold anything; what is not told stays unknown
            continue
        graph = done.graph
        values = (*graph.input, *graph.value_info, *graph.output)
        told = {value.name: _told(value) for value in values}
        stored = {t.name: (int(t.data_type), tuple(t.dims)) for t in graph.initializer}
        return told | stored
    return {}


def _chosen(shapes: Mapping[str, tuple[int | str, ...]], choice: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of inputs with a number for every free size."""
    numbers: dict[str, int] = {}
    sides: Iterator[int] = iter(_SIDES[choice])
    for shape in shapes.values():
        for axis, size in enumerate(shape):
            if isinstance(size, str) and size not in numbers:
                numbers[size] = next(sides, 32) if axis else _BATCHES[choice]
    return {
        name: tuple(numbers[size] if isinstance(size, str) else size for size in shape)
        for name, shape in shapes.items()
    }


def _told(value: Any) -> tuple[int, Shape | None]:
    return _of_type(value.type)


def _of_type(told: Any) -> tuple[int, Shape | None]:
    tensor = told.tensor_type
    if not tensor.HasField("shape"):
        return int(tensor.elem_type), None
    sizes = [size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim]
    return int(tensor.elem_type), None if any(size < 0 for size in sizes) else tuple(sizes)


def _light(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """Return the model without its weights and without what it says of shapes itself."""
    onnx = require("onnx", "onnx")
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph = light.graph
    graph.name = model.graph.name
    for node in model.graph.node:
        graph.node.append(_without_weights(node) if _is_heavy(node) else node)
    graph.initializer.extend(_header(tensor) for tensor in model.graph.initializer)
    graph.input.extend(model.graph.input)
    for value in graph.input:
        if value.name in shapes:
            value.type.tensor_type.shape.Clear()
            for size in shapes[value.name]:
                value.type.tensor_type.shape.dim.add().dim_value = size
    for value in model.graph.output:
        bare = graph.output.add(name=value.name)
        if value.type.HasField("tensor_type"):
            bare.type.tensor_type.elem_type = value.type.tensor_type.elem_type
    return light


def _is_heavy(node: Any) -> bool:
    tensors = [a.t for a in node.attribute if a.HasField("t")]
    return any(_is_large(tensor) for tensor in tensors) and not any(subgraphs(node))


def _is_large(tensor: Any) -> bool:
    count = 1
    for size in tensor.dims:
        count *= size
    return count > _SMALL


def _without_weights(node: Any) -> Any:
    onnx = require("onnx", "onnx")
    light = onnx.NodeProto(op_type=node.op_type, name=node.name, domain=node.domain)
    light.input.extend(node.input)
    light.output.extend(node.output)
    for attribute in node.attribute:
        if attribute.HasField("t"):
            light.attribute.add(name=attribute.name, type=attribute.type).t.CopyFrom(
                _header(attribute.t)
            )
        else:
            light.attribute.append(attribute)
    return light


def _header(tensor: Any) -> Any:
    if not _is_large(tensor):
        return tensor
    onnx = require("onnx", "onnx")
    return onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
