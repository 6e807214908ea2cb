"""Lift: what a node of the flat graph is in the algebra.

Calls are recognised by what they compute, never by the model they stand in. A node that looks affine but must stay (a norm in
training mode, a tied weight, a module with hooks) gives a sentence instead, which ends up in the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx

from refold.algebra.norm import norm_affine
from refold.algebra.operator import Affine, Conv, Identity, Zero
from refold.errors import GeometryError
from refold.graph.calls import Call, canonical
from refold.graph.capture import Capture
from refold.graph.constants import Constants
from refold.graph.lift_modules import lift_module
from refold.graph.lift_shapes import SHAPE_HANDLERS
from refold.graph.piece import Lifted, Piece, nothing, unary
from refold.graph.windows import conv_axes, transposed_axes


class Lifter:
    """Lifts the nodes of one capture.

    Args:
        capture: the flat graph with its modules.
        constants: values that depend on parameters alone.
        shapes: tensor shapes of node values, where example inputs gave them.
        tainted: values that in-place operations make unsafe, with the reason.
    """

    def __init__(
        self,
        capture: Capture,
        constants: Constants,
        shapes: dict[fx.Node, tuple[int, ...]],
        tainted: dict[fx.Node, str],
    ) -> None:
        self.capture = capture
        self.constants = constants
        self.shapes = shapes
        self.tainted = tainted

    def lift(self, node: fx.Node) -> Lifted:
        """Return the node's piece, the reason why it has none, or None for anything not affine."""
        try:
            lifted = self._lift(node)
        except GeometryError as error:
            return str(error)
        if isinstance(lifted, Piece) and node in self.tainted:
            return self.tainted[node]
        return lifted

    def _lift(self, node: fx.Node) -> Lifted:
        if node.op == "call_module":
            return self._lift_module(node)
        if node.op not in ("call_function", "call_method"):
            return None
        if self.constants.value(node) is not None:
            return None
        if getattr(node.target, "__name__", "") == "stochastic_depth":
            return nothing(cast(fx.Node, node.args[0])) if not _flag(node, "training", 3) else None
        call = canonical(node)
        if call is None:
            return None
        handler = _HANDLERS.get(call.name) or SHAPE_HANDLERS.get(call.name)
        return handler(self, node, call) if handler else None

    def _lift_module(self, node: fx.Node) -> Lifted:
        path = str(node.target)
        if not node.args or not isinstance(node.args[0], fx.Node):
            return None
        module = self.capture.module.get_submodule(path)
        lifted = lift_module(module, node.args[0], self.shape(node.args[0]))
        if not isinstance(lifted, Piece) or not any(True for _ in module.parameters(recurse=False)):
            return lifted if path not in self.capture.pinned else self.capture.pinned[path]
        return self._module_refusal(path, module) or lifted

    def _module_refusal(self, path: str, module: torch.nn.Module) -> str | None:
        if path in self.capture.pinned:
            return self.capture.pinned[path]
        if self.capture.calls.get(path, 1) > 1:
            return f"the module is called {self.capture.calls[path]} times"
        for name, _ in module.named_parameters(recurse=False):
            shared = self.constants.shared(f"{path}.{name}")
            if shared:
                return shared
        return None

    # -- what handlers ask --------------------------------------------------------------------------------

    def shape(self, value: Any) -> tuple[int, ...] | None:
        """Return the shape of a node's value, None where no example inputs told it."""
        return self.shapes.get(value) if isinstance(value, fx.Node) else None

    def tensor(self, value: Any) -> Tensor | None:
        """Return a parameter-only tensor, or None when it depends on inputs."""
        found = self.constants.value(value) if isinstance(value, fx.Node) else None
        return found if isinstance(found, Tensor) else None

    def number(self, value: Any) -> float | int | None:
        """Return a plain number."""
        if isinstance(value, fx.Node):
            value = self.constants.value(value)
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    def weights(self, *values: Any) -> list[Tensor | None] | str | None:
        """Return weight tensors, a refusal when one is tied, None when one is computed from inputs."""
        found: list[Tensor | None] = []
        for value in values:
            tensor = None if value is None else self.tensor(value)
            if value is not None and tensor is None:
                return None
            found.append(tensor)
            for path in self.constants.sources(value) if isinstance(value, fx.Node) else ():
                if shared := self.constants.shared(path):
                    return shared
        return found


Handler = Callable[[Lifter, fx.Node, Call], Lifted]


def _flag(node: fx.Node, name: str, position: int) -> bool:
    return bool(node.kwargs.get(name, node.args[position] if len(node.args) > position else True))


def _conv(lifter: Lifter, node: fx.Node, call: Call) -> Lifted:
    tensors = lifter.weights(call["weight"], call["bias"])
    if tensors is None:
        return "its weight is computed from the input"
    if isinstance(tensors, str):
        return tensors
    weight, bias = tensors
    assert weight is not None
    kernel = tuple(weight.shape[2:])
    if call.arguments.get("transposed") or call.name.startswith("conv_transpose"):
        axes = transposed_axes(
            kernel, call["stride"], call["padding"], call["dilation"], call["output_padding"]
        )
        op = Conv(weight, bias, axes, call["groups"], transposed=True)
    else:
        axes = conv_axes(kernel, call["stride"], call["padding"], call["dilation"])
        op = Conv(weight, bias, axes, call["groups"])
    return unary(call["input"], op, rank=len(kernel))


def _linear(lifter: Lifter, node: fx.Node, call: Call) -> Lifted:
    tensors = lifter.weights(call["weight"], call["bias"])
    if tensors is None or isinstance(tensors, str) or tensors[0] is None or tensors[0].ndim != 2:
        return tensors if isinstance(tensors, str) else None
    op = Conv(tensors[0], tensors[1])
    return Piece((call["input"],), (op,), rank_in=0, rank_out=0)


def _norm(lifter: Lifter, node: fx.Node, call: Call) -> Lifted:
    if call.arguments.get("training") is True:
        return "the norm is in training mode; call model.eval()"
    tensors = lifter.weights(*(call[key] for key in ("mean", "var", "weight", "bias")))
    if tensors is None or isinstance(tensors, str):
        return tensors
    mean, var, weight, bias = tensors
    if mean is None or var is None:
        return "the norm has no running statistics; it normalises with the batch"
    shape = lifter.shape(call["input"])
    op = norm_affine(mean, var, weight, bias, call["eps"])
    if shape is None:
        return "the number of spatial axes is unknown; pass example_inputs"
    return unary(call["input"], op, rank=len(shape) - 2, keeps_shape=True)


def _native_norm(lifter: Lifter, node: fx.Node, call: Call) -> Lifted:
    return None


def _add(lifter: Lifter, node: fx.Node, call: Call) -> Lifted:
    alpha = lifter.number(call.arguments.get("alpha", 1))
    sign = {"add": 1, "sub": -1, "rsub": 1}[call.name]
    left, right = call["input"], call["other"]
    factors = (-1.0, 1.0) if call.name == "rsub" else (1.0, float(sign))
    if alpha is None or call.name == "rsub" and alpha != 1:
        return None
    return _combine(lifter, node, (left, right), (factors[0], factors[1] * alpha))


def _combine(
    lifter: Lifter, node: fx.Node, terms: tuple[Any, Any], factors: tuple[float, float]
) -> Lifted:
    values = [t for t in terms if isinstance(t, fx.Node) and lifter.constants.value(t) is None]
    if len(values) == 2:
        ops = tuple(_times(factor) for factor in factors)
        return Piece(tuple(values), ops, join="sum")
    if not values:
        return None
    at = 0 if terms[0] is values[0] else 1
    constant, factor = terms[1 - at], factors[1 - at]
    if lifter.number(constant) == 0:
        return unary(values[0], _times(factors[at]), keeps_shape=True)
    vector = _vector(lifter, constant, values[0])
    if vector is None or isinstance(vector, str):
        return vector
    shift, rank = vector
    scale = None if factors[at] == 1 else torch.tensor(factors[at], dtype=torch.float64)
    op = Affine(scale, shift.to(torch.float64) * factor)
    return unary(values[0], op, rank=rank, keeps_shape=True)


def _times(factor: float) -> Affine | Identity:
    return Identity() if factor == 1 else Affine(torch.tensor(float(factor), dtype=torch.float64))


def _mul(lifter: Lifter, node: fx.Node, call: Call) -> Lifted:
    left, right = call["input"], call["other"]
    if not isinstance(left, fx.Node) or lifter.constants.value(left) is not None:
        left, right = right, left
    return _scaled(lifter, left, right, divide=False)


def _div(lifter: Lifter, node: fx.Node, call: Call) -> Lifted:
    return None if call["rounding_mode"] else _scaled(lifter, call["input"], call["other"], divide=True)


def _scaled(lifter: Lifter, value: Any, factor: Any, *, divide: bool) -> Lifted:
    if not isinstance(value, fx.Node) or lifter.constants.value(value) is not None:
        return None
    number = lifter.number(factor)
    if number is not None and number == 0 and not divide:
        return unary(value, Zero(), keeps_shape=True)
    vector = _vector(lifter, factor, value)
    if vector is None or isinstance(vector, str):
        return vector
    scale, rank = vector
    scale = scale.to(torch.float64)
    op = Affine(1.0 / scale if divide else scale)
    return unary(value, op, rank=rank, keeps_shape=True)


def _vector(lifter: Lifter, constant: Any, value: fx.Node) -> tuple[Tensor, int | None] | str | None:
    """Return a constant as one number per channel with the rank its shape implies."""
    number = lifter.number(constant)
    if number is not None:
        return torch.tensor(float(number), dtype=torch.float64), None
    tensors = lifter.weights(constant)
    if tensors is None or isinstance(tensors, str):
        return tensors
    tensor = tensors[0]
    assert tensor is not None
    if not tensor.is_floating_point() and not tensor.dtype == torch.int64:
        return None
    wide = [axis for axis, size in enumerate(tensor.shape) if size > 1]
    shape = lifter.shape(value)
    if shape is not None and tensor.ndim > len(shape):
        return None
    if not wide:
        return tensor.detach().reshape(()), None
    if len(wide) > 1:
        return None
    return tensor.detach().flatten(), tensor.ndim - 1 - wide[0]


def _neg(lifter: Lifter, node: fx.Node, call: Call) -> Lifted:
    return unary(call["input"], _times(-1.0), keeps_shape=True)


def _zeros(lifter: Lifter, node: fx.Node, call: Call) -> Lifted:
    return unary(call["input"], Zero(), keeps_shape=True)


def _sum_list(lifter: Lifter, node: fx.Node, call: Call) -> Lifted:
    items = call["items"]
    if not isinstance(items, Sequence) or lifter.number(call["start"]) != 0:
        return None
    nodes = [item for item in cast("Sequence[Any]", items) if isinstance(item, fx.Node)]
    return Piece(tuple(nodes), (Identity(),) * len(nodes), join="sum") if nodes else None


def _dropout(lifter: Lifter, node: fx.Node, call: Call) -> Lifted:
    active = call["training"] and lifter.number(call["p"]) != 0
    return "dropout is in training mode; call model.eval()" if active else nothing(call["input"])


def _same(lifter: Lifter, node: fx.Node, call: Call) -> Lifted:
    plain = len(node.args) == 1 and not node.kwargs
    return nothing(call["input"]) if plain else None


def _native_item(lifter: Lifter, node: fx.Node, call: Call) -> Lifted:
    """Lift item 0 of aten's norm, which gives a tuple; any other getitem is a matter of shapes."""
    inner = call["input"]
    if call["index"] == 0 and isinstance(inner, fx.Node) and inner.op == "call_function":
        source = canonical(inner)
        if source is not None and source.name == "native_norm":
            lifted = _norm(lifter, inner, source)
            if isinstance(lifted, Piece):
                return Piece(
                    lifted.sources, lifted.ops, "none", lifted.rank_in, lifted.rank_out, None, True, (inner,)
                )
            return lifted
    return SHAPE_HANDLERS["getitem"](lifter, node, call)


_HANDLERS: dict[str, Handler] = {
    **{f"conv{rank}d": _conv for rank in (1, 2, 3)},
    **{f"conv_transpose{rank}d": _conv for rank in (1, 2, 3)},
    "convolution": _conv,
    "linear": _linear,
    "batch_norm": _norm,
    "functional_batch_norm": _norm,
    "native_norm": _native_norm,
    "getitem": _native_item,
    "add": _add,
    "sub": _add,
    "rsub": _add,
    "mul": _mul,
    "div": _div,
    "neg": _neg,
    "zeros_like": _zeros,
    "sum_list": _sum_list,
    "dropout": _dropout,
    "same": _same,
}

