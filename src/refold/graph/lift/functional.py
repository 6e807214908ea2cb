"""Convolutions, linear layers, norms and dropout called as functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, fx

from refold.algebra.norm import norm_affine
from refold.algebra.operator import Affine, Conv
from refold.graph.calls import Call, canonical, is_kind_question
from refold.graph.lift.arithmetic import linear, matrix
from refold.graph.lift.context import Context, Handler, Shape
from refold.graph.lift.indexing import SLICES
from refold.graph.lift.joins.stacks import contract_stack, einsum_of_stack
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
    if not context.depends(call["input"]):
        return _left_matmul(context, call) if call.name == "matmul" else None
    if call.arguments.get("alpha", 1) != 1:
        return None
    if call.name == "matmul":
        stacked = contract_stack(context, call["input"], call["other"], -1)
        if stacked is not None:
            return stacked
    bias = call.arguments.get("bias") if call.arguments.get("beta", 1) == 1 else None
    if call.name == "addmm" and bias is None:
        return None
    op = matrix(context, call["other"], bias)
    return linear(call["input"], op) if isinstance(op, Conv) else op


def _left_matmul(context: Context, call: Call) -> Lifted:
    """Lift W @ x with a constant matrix: a pointwise convolution of x (N, C, L)."""
    weights, shape = context.weights(call["input"]), context.shape(call["other"])
    if not isinstance(weights, list) or shape is None or len(shape) != 3:
        return weights if isinstance(weights, str) else None
    [matrix] = weights
    return _pointwise(call["other"], matrix, 1) if matrix is not None and matrix.ndim == 2 else None


def _pointwise(value: fx.Node, weight: Tensor, rank: int) -> Piece:
    """Return the piece of a convolution whose weight (O, I) sees one position each."""
    axes = conv_axes((1,) * rank, 1, 0, 1)
    return unary(value, Conv(weight[(..., *(None,) * rank)], None, axes), rank=rank)


def _einsum(context: Context, node: fx.Node, call: Call) -> Lifted:
    """Lift a sum of products with a constant matrix over one axis of a value."""
    terms, operands = call["equation"], call["operands"]
    if not isinstance(terms, str) or not isinstance(operands, (tuple, list)) or len(operands) != 2:
        return None
    given, arrow, made = terms.replace(" ", "").partition("->")
    names = given.split(",")
    at = 0 if context.depends(operands[0]) else 1
    value, constant = operands[at], operands[1 - at]
    if not arrow or not context.depends(value) or context.depends(constant):
        return None
    pair = names[at], names[1 - at], made, (value, constant)
    if (stacked := einsum_of_stack(context, *pair)) is not None:
        return stacked
    weight = context.weights(constant)
    if not isinstance(weight, list) or weight[0] is None:
        return weight if isinstance(weight, str) else None
    own, other = names[at], names[1 - at]
    if own == made and len(other) == 1 and own.count(other) == 1 and weight[0].ndim == 1:
        return _scaled(context.shape(value), value, own, other, weight[0])
    return _contracted(value, own, other, made, weight[0])


def _contracted(value: fx.Node, own: str, other: str, made: str, weight: Tensor) -> Lifted:
    """Return the layer that takes one axis of a value to a new one in its place."""
    old, new = [c for c in other if c not in made], [c for c in other if c not in own]
    if len(other) != 2 or len(old) != 1 or len(new) != 1 or weight.ndim != 2:
        return None
    [gone], [comes] = old, new
    if len(set(own.replace("...", ""))) != len(own.replace("...", "")) or gone not in own:
        return None
    if own.replace(gone, comes) != made:
        return None
    matrix = weight if other == comes + gone else weight.T
    if own.endswith(gone):
        return linear(value, Conv(matrix))
    rank = len(own) - 2
    return _pointwise(value, matrix, rank) if own.index(gone) == 1 and "." not in own else None


def _scaled(shape: Shape | None, value: fx.Node, own: str, axis: str, scale: Tensor) -> Lifted:
    """Return the scale of one axis, the last or the second, of a value whose axes are named."""
    is_last, is_second = own.endswith(axis), own.index(axis) == 1 and "." not in own
    rank = 0 if is_last else len(own) - 2
    if shape is None or not (is_last or is_second) or shape[-1 - rank] != scale.numel():
        return None
    return unary(value, Affine(scale), rank=rank, keeps_shape=True)


def _tensordot(context: Context, node: fx.Node, call: Call) -> Lifted:
    if call["dims"] != 1 or call["out"] is not None:
        return None
    if not context.depends(call["input"]):
        return contract_stack(context, call["other"], call["input"], 0)
    if (stacked := contract_stack(context, call["input"], call["other"], -1)) is not None:
        return stacked
    op = matrix(context, call["other"], None)
    return linear(call["input"], op) if isinstance(op, Conv) else op


def _nothing_if(is_idle: Callable[[Context, Call], bool]) -> Handler:
    """Return the handler of a call that gives its input back where its arguments say so."""

    def handle(context: Context, node: fx.Node, call: Call) -> Lifted:
        value = call["input"]
        return nothing(value) if context.depends(value) and is_idle(context, call) else None

    return handle


def _pools_one(context: Context, call: Call) -> bool:
    sizes = [call["kernel_size"], call["stride"] or call["kernel_size"]]
    flat = [n for size in sizes for n in (size if isinstance(size, (tuple, list)) else (size,))]
    return set(flat) == {1} and not call["return_indices"] and call["padding"] in (0, (0, 0))


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
    "einsum": _einsum,
    "tensordot": _tensordot,
    "pow": _nothing_if(lambda context, call: context.number(call["exponent"]) == 1),
    "maximum": _nothing_if(lambda context, call: call["other"] is call["input"]),
    "pixel_shuffle": _nothing_if(lambda context, call: call["factor"] == 1),
    **{f"max_pool{rank}d": _nothing_if(_pools_one) for rank in (1, 2, 3)},
    "same": _same,
    "to": _cast,
}
