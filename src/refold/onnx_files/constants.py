"""The values of a file that no input decides: weights, Constant nodes, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from refold.errors import InputError
from refold.exporting import require
from refold.onnx_files.reading import DEFAULT, OnnxFile, attributes
from refold.onnx_files.sizes import Shape, Sizes, infer, outputs_of
from refold.onnx_files.tensors import code_of, dtype_of, to_proto, to_torch

Fixed = Callable[[str], tuple[int | None, ...] | None]
_MOST = 1 << 24  # numbers that a computed constant may have
_NAMES = (
    "Identity Reshape Unsqueeze Squeeze Transpose Flatten Cast Concat Slice Gather Expand Shape "
    "ConstantOfShape Tile Add Sub Mul Div Neg Sqrt Reciprocal Pow Abs Exp Floor Ceil Max Min Split "
    "Equal Where Range Size ReduceProd Not And Or Greater Less CastLike"
)
_SMALL = 64  # numbers that a shape is made of
_MOVES = ("Reshape", "Unsqueeze", "Squeeze", "Concat", "Slice", "Split", "ReduceProd")
_COMPUTED = frozenset(_NAMES.split())
_OF_SIZES = _COMPUTED.difference(
    ("Div", "Sqrt", "Reciprocal", "Pow", "Abs", "Exp", "Floor", "Ceil", "Max", "Min", "Tile"),
    ("Equal", "Where", "Range", "Size", "ReduceProd", "Not", "And", "Or", "Greater", "Less"),
    ("Flatten", "Split"),
)
"""What may be computed from sizes: nothing that agrees at two sizes and differs at others."""


class Constants:
    """The constants of a file by name, computed when they are asked for.

    Args:
        file: what was read.
        types: ONNX's element type of each value, where known.
        shapes: of the values for one choice of the free sizes; what is computed of sizes is then a
            constant, too.
        fixed: returns the sizes of a value that no input decides; what is computed of these alone
            is a constant as well.
        others: constants that count as known.
    """

    def __init__(
        self,
        file: OnnxFile,
        types: Mapping[str, int],
        shapes: Mapping[str, Shape] | None = None,
        fixed: Fixed | None = None,
        others: Constants | None = None,
    ) -> None:
        self._others = others
        self._file, self._types, self._shapes, self._fixed = file, types, shapes or {}, fixed
        computed = _COMPUTED if shapes is None else _OF_SIZES
        graph = file.model.graph
        given = {value.name for value in graph.input} if file.model.ir_version >= 4 else set[str]()
        stored = (tensor for tensor in graph.initializer if tensor.name not in given)
        self._stored = {tensor.name: tensor for tensor in stored}
        self._makers = {
            name: node
            for node in file.nodes
            if node.domain in DEFAULT
            for name in node.output
            if name and (node.op_type == "Constant" or node.op_type in computed)
        }
        self._known: dict[str, Tensor | None] = {}

    def is_stored(self, name: str) -> bool:
        """Say whether a name is that of a weight which no input replaces."""
        return name in self._stored

    def value(self, name: str) -> Tensor | None:
        """Return a constant, None for a value that is none; the caller does not change it.

        Raises:
            InputError: when the file does not hold the numbers that it should.
        """
        if name in self._stored:
            return to_torch(self._stored[name], self._file.folder)
        known = None if self._others is None else self._others.value(name)
        if known is not None:
            return known
        if name not in self._known:
            self._known[name] = None  # a ring in a damaged file ends here
            self._known[name] = self._made(name)
        return self._known[name]

    def _made(self, name: str) -> Tensor | None:
        node = self._makers.get(name)
        if node is None:
            return None
        if node.op_type == "Constant":
            return self._written(node)
        if node.op_type == "Shape" and node.input[0] in self._shapes:
            return self._size(node)
        if node.op_type == "CastLike":
            return self._cast(node)
        told = self._told(node)
        if told is not None:
            return told
        given = {other: self.value(other) for other in node.input if other}
        tensors = {other: tensor for other, tensor in given.items() if tensor is not None}
        if len(tensors) < len(given):
            return None
        try:
            if _numbers(node, list(tensors.values())) > _MOST:
                return None
            return self._remembered(node, name, tensors)
        except InputError:
            raise
        except Exception:  # what the reference cannot compute is not a constant of ours
            return None

    def _written(self, node: Any) -> Tensor | None:
        for item in node.attribute:
            if item.name == "value" and item.HasField("t"):
                return to_torch(item.t, self._file.folder)
            if item.name == "value_float":
                return torch.tensor(item.f, dtype=torch.float32)
            if item.name == "value_int":
                return torch.tensor(item.i, dtype=torch.int64)
            if item.name == "value_floats":
                return torch.tensor(list(item.floats), dtype=torch.float32)
            if item.name == "value_ints":
                return torch.tensor(list(item.ints), dtype=torch.int64)
        return None

    def _told(self, node: Any) -> Tensor | None:
        """Return sizes that no input decides: all of a value's, or some that are chosen."""
        maker = self._makers.get(node.input[0]) if node.op_type == "Gather" else node
        if self._fixed is None or maker is None or maker.op_type != "Shape":
            return None
        known = self._fixed(maker.input[0])
        if known is None:
            return None
        given = attributes(maker)
        sizes = known[slice(given.get("start"), given.get("end"))]
        at = torch.arange(len(sizes)) if maker is node else self.value(node.input[1])
        if at is None or any(not -len(sizes) <= int(i) < len(sizes) for i in at.reshape(-1)):
            return None
        chosen = [sizes[int(i)] for i in at.reshape(-1)]
        numbers = [size for size in chosen if size is not None]
        whole = len(numbers) == len(chosen)
        return torch.tensor(numbers, dtype=torch.int64).reshape(at.shape) if whole else None

    def _size(self, node: Any) -> Tensor:
        given = attributes(node)
        shape = self._shapes[node.input[0]][slice(given.get("start"), given.get("end"))]
        return torch.tensor(shape, dtype=torch.int64)

    def _cast(self, node: Any) -> Tensor | None:
        """Return a constant in the type of a value, which may well be one of the inputs."""
        value, like = self.value(node.input[0]), self.value(node.input[1])
        code = self._types.get(node.input[1], 0)
        dtype = dtype_of(code) if like is None else like.dtype
        return None if value is None or dtype is None else value.to(dtype)

    def _remembered(self, node: Any, name: str, given: dict[str, Tensor]) -> Tensor | None:
        """Compute a node, unless that was done for the same numbers before."""
        if any(value.numel() > _SMALL for value in given.values()):
            return self._run(node, name, given)
        key = name, *(value.numpy().tobytes() for value in given.values())
        if key not in self._file.computed:
            self._file.computed[key] = self._run(node, name, given)
        return self._file.computed[key]

    def _run(self, node: Any, name: str, given: dict[str, Tensor]) -> Tensor | None:
        """Compute one node with onnx's reference implementation."""
        onnx = require("onnx", "onnx")
        reference = require("onnx.reference", "onnx")
        made = onnx.helper.make_graph(
            [node], "constant", [],
            [onnx.helper.make_empty_tensor_value_info(name)],
            [to_proto(tensor, other) for other, tensor in given.items()],
        )  # fmt: skip
        model = onnx.helper.make_model(made, opset_imports=self._file.model.opset_import)
        model.ir_version = max(model.ir_version, 4)
        [array] = reference.ReferenceEvaluator(model).run([name], {})
        tensor = torch.from_numpy(require("numpy", "onnx").array(array))
        code_of(tensor.dtype)  # a KeyError for what ONNX has no tensors of
        return tensor


def constants_of(file: OnnxFile, sizes: Sizes) -> Constants:
    """Return the constants of a file whose sizes are known."""
    return Constants(file, sizes.types, fixed=sizes.fixed)


def sizes_of(file: OnnxFile) -> Sizes:
    """Return the types and shapes of a file's values, what reshapes compute of sizes included."""
    sizes = infer(file.model)
    settled = constants_of(file, sizes)
    choices = [
        (shapes, Constants(file, sizes.types, shapes, others=settled))
        for shapes in (sizes.shapes, sizes.others)
    ]
    for node in file.nodes:
        for shapes, constants in choices:
            if all(name in shapes for name in node.output if name):
                continue
            for name, (code, shape) in told_of(node, file, sizes.types, shapes, constants).items():
                sizes.types.setdefault(name, code)
                if shape is not None:
                    shapes.setdefault(name, shape)
    return sizes


def told_of(
    node: Any, file: OnnxFile, types: Mapping[str, int], shapes: Mapping[str, Shape],
    constants: Constants,
) -> dict[str, tuple[int, Shape | None]]:  # fmt: skip
    """Return the types and shapes of what one node makes, as far as its inputs tell them.

    Args:
        node: of the file.
        file: what was read.
        types: known so far.
        shapes: known so far, for one choice of the free sizes.
        constants: for the same choice.
    """
    names = [name for name in node.input if name]
    if any(name not in types or name not in shapes for name in names):
        return {}
    data = {
        name: to_proto(value, name) for name in names
        if prod(shapes[name]) <= _SMALL and (value := constants.value(name)) is not None
    }  # fmt: skip
    return outputs_of(node, file.model, {n: (types[n], shapes[n]) for n in names}, data)


def _numbers(node: Any, given: list[Tensor]) -> int:
    """Return how many numbers a node makes at most: a damaged file may ask for any number."""
    if not given:
        return 0
    first, last = given[0], given[-1]
    if node.op_type == "ConstantOfShape":
        return prod(first.tolist())
    if node.op_type in ("Tile", "Expand"):
        return first.numel() * max(prod(last.tolist()), 1)
    if node.op_type == "Range":
        start, limit, step = (float(value) for value in given)
        return int(abs((limit - start) / step)) if step else 0
    if node.op_type == "Gather":
        return first.numel() * max(last.numel(), 1)
    if len(given) > 1 and node.op_type not in _MOVES:
        return prod(torch.broadcast_shapes(*(value.shape for value in given)))
    return sum(value.numel() for value in given)
