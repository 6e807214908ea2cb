"""Convolutions, linear layers, norms and dropout called as functions."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from refold.algebra.norm import norm_affine
from refold.algebra.operator import Conv
from refold.graph.calls import Call, canonical, is_kind_question
from refold.graph.lift.arithmetic import linear, matrix
from refold.graph.lift.context import Context, Handler
from refold.graph.lift.indexing import SLICES
from refold.graph.lift.kinds import same_kind
from refold.graph.lift.piece import Lifted, Piece, norm_piece, nothing, unary
from refold.graph.lift.windows import conv_axes, transposed_axes


def _conv(context: Context, node: fx.Node, call: Call) -> Lifted:
    tensors = context.weights(call["weight"], call["bias"])
    if tensors is None:
        return "its weight is computed from the input"
    if isinstance(tensors, str):
        return tensors
    weight, bias = tensors
    assert weight is not None
    if not isinstance(call["groups"], int):
        return "its number of groups is computed"
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


def _linear(context: Context, node: fx.Node, call: Call) -> Lifted:
    tensors = context.weights(call["weight"], call["bias"])
    if tensors is None or isinstance(tensors, str) or tensors[0] is None or tensors[0].ndim != 2:
        return tensors if isinstance(tensors, str) else None
    return linear(call["input"], Conv(tensors[0], tensors[1]))


def _matmul(context: Context, node: fx.Node, call: Call) -> Lifted:
    """Lift x @ W + b with a constant matrix: a linear layer that was written out."""
    if not context.depends(call["input"]) or call.arguments.get("alpha", 1) != 1:
        return None
    bias = call.arguments.get("bias") if call.arguments.get("beta", 1) == 1 else None
    if call.name == "addmm" and bias is None:
        return None
    op = matrix(context, call["other"], bias)
    return linear(call["input"], op) if isinstance(op, Conv) else op


def _norm(context: Context, node: fx.Node, call: Call) -> Lifted:
    if call.arguments.get("training") is True:
        return "the norm is in training mode; call model.eval()"
    tensors = context.weights(*(call[key] for key in ("mean", "var", "weight", "bias")))
    if tensors is None or isinstance(tensors, str):
        return tensors
    mean, var, weight, bias = tensors
    if mean is None or var is None:
        return "the norm has no running statistics; it normalises with the batch"
    op = norm_affine(mean, var, weight, bias, call["eps"])
    return norm_piece(call["input"], op, context.shape(call["input"]))


def _instance_norm(context: Context, node: fx.Node, call: Call) -> Lifted:
    return None if call["use_input_stats"] else _norm(context, node, call)


def _dropout(context: Context, node: fx.Node, call: Call) -> Lifted:
    active = call["training"] and context.number(call["p"]) != 0
    return "dropout is in training mode; call model.eval()" if active else nothing(call["input"])


def _same(context: Context, node: fx.Node, call: Call) -> Lifted:
    plain = len(node.args) == 1 and not node.kwargs
    return nothing(call["input"]) if plain else None


def _cast(context: Context, node: fx.Node, call: Call) -> Lifted:
    """Lift a cast to the type, or a move to the device, that a value has already."""
    kind = call["kind"]
    if not isinstance(kind, fx.Node) or not is_kind_question(kind):
        return None
    asked = kind.args[0]
    known = isinstance(asked, fx.Node) and same_kind(context, call["input"], asked)
    return nothing(call["input"]) if known else None


def _getitem(context: Context, node: fx.Node, call: Call) -> Lifted:
    """Lift item 0 of aten's norm, which gives a tuple; any other item is a matter of slices."""
    inner = call["input"]
    source = canonical(inner) if isinstance(inner, fx.Node) else None
    if source is None or source.name != "native_norm":
        return SLICES["getitem"](context, node, call)
    lifted = _norm(context, inner, source) if call["index"] == 0 else None
    return replace(lifted, through=(inner,)) if isinstance(lifted, Piece) else lifted


LAYERS: dict[str, Handler] = {
    **{f"conv{rank}d": _conv for rank in (1, 2, 3)},
    **{f"conv_transpose{rank}d": _conv for rank in (1, 2, 3)},
    "convolution": _conv,
    "linear": _linear,
    "matmul": _matmul,
    "addmm": _matmul,
    "functional_instance_norm": _instance_norm,
    "batch_norm": _norm,
    "functional_batch_norm": _norm,
    "getitem": _getitem,
    "dropout": _dropout,
    "same": _same,
    "to": _cast,
}
