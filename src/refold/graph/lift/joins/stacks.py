"""Sums over values that were stacked along an axis of their own, each with a constant weight.

`torch.stack(branches).sum(0)` is a sum of branches; so are its mean, what a product with constants
makes of it first, and `torch.einsum("k,kbchw->bchw", weights, stacked)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx

from refold.algebra.operator import Affine, Identity, Operator
from refold.graph.calls import Call, canonical
from refold.graph.lift.arithmetic import vector_of
from refold.graph.lift.context import Context, Handler, Shape
from refold.graph.lift.piece import Lifted, Piece


@dataclass(frozen=True, eq=False)
class _Stack:
    """Values side by side along an axis of their own.

    Args:
        items: the values.
        axis: where they lie, counted from 0; from the end where the number of axes is unknown.
        shape: of the whole, where known.
        factors: constants that the whole was multiplied by.
        through: the calls that made it, the last first.
    """

    items: tuple[fx.Node, ...]
    axis: int
    shape: Shape | None
    factors: tuple[Tensor, ...]
    through: tuple[fx.Node, ...]


def _stack(context: Context, value: Any) -> _Stack | str | None:
    """Return the stack that a value is, with the constants it was multiplied by on the way."""
    constants, through = list[tuple[Any, bool]](), list[fx.Node]()
    while isinstance(value, fx.Node):
        call = canonical(value)
        if call is None:
            return None
        through.append(value)
        if call.name == "stack":
            break
        if call.name not in ("mul", "div") or call.arguments.get("rounding_mode"):
            return None
        value, constant = call["input"], call["other"]
        if call.name == "mul" and not context.depends(value):
            value, constant = constant, value
        if context.depends(constant):
            return None
        constants.append((constant, call.name == "div"))
    items = _items(context, value)
    if items is None:
        return None
    factors = list[Tensor]()
    for constant, divides in constants:
        factor = _constant(context, constant)
        if not isinstance(factor, Tensor):
            return factor
        factors.append(1.0 / factor if divides else factor)
    shape, axis = context.shape(value), canonical(value)["dim"]  # type: ignore[index]
    axis = axis if shape is None else axis % len(shape)
    return _Stack(items, axis, shape, tuple(factors), tuple(through))


def _items(context: Context, node: Any) -> tuple[fx.Node, ...] | None:
    """Return what a stack is made of, all of which must come from the input."""
    call = canonical(node) if isinstance(node, fx.Node) else None
    items = None if call is None else call["tensors"]
    if call is None or not isinstance(items, (list, tuple)) or not isinstance(call["dim"], int):
        return None
    every = cast("Sequence[Any]", items)
    found = tuple(item for item in every if isinstance(item, fx.Node) and context.depends(item))
    return found if found and len(found) == len(every) else None


def _constant(context: Context, value: Any) -> Tensor | str | None:
    """Return a constant in float64, why it must stay as it is, or None."""
    number = context.number(value)
    if number is not None:
        return torch.tensor(float(number), dtype=torch.float64)
    found = context.weights(value)
    if not isinstance(found, list) or found[0] is None or not found[0].is_floating_point():
        return found if isinstance(found, str) else None
    return found[0].detach().double()


def _added(context: Context, stack: _Stack, more: Sequence[Tensor], factor: float) -> Lifted:
    """Return the sum over a stack's own axis, of its product with constants.

    Args:
        context: what is known of the graph.
        stack: the stack.
        more: constants that broadcast to the stack, besides its own.
        factor: a number that all of it is multiplied by.
    """
    ops, ranks = list[Operator](), set[int | None]()
    for at, item in enumerate(stack.items):
        scale, rank = torch.tensor(factor, dtype=torch.float64), None
        for constant in (*stack.factors, *more):
            vector = _of_item(context, stack, constant, at, item)
            if not isinstance(vector, tuple):
                return vector
            scale, rank = scale * vector[0], rank if vector[1] is None else vector[1]
            ranks.add(vector[1])
        is_one = not scale.is_meta and bool((scale == 1).all())
        ops.append(Identity() if is_one else Affine(scale))
    told = ranks - {None}
    if len(told) > 1 or len({context.shape(item) for item in stack.items} - {None}) > 1:
        return None
    rank = told.pop() if told else None
    return Piece(stack.items, tuple(ops), join="sum", rank_in=rank, through=stack.through)


def _of_item(
    context: Context, stack: _Stack, constant: Tensor, at: int, item: fx.Node
) -> tuple[Tensor, int | None] | str | None:
    """Return what a constant is for one of a stack's values: one number, or one per channel."""
    if constant.ndim == 0:
        return constant, None
    shape, own = stack.shape, context.shape(item)
    if shape is None or own is None or constant.ndim > len(shape):
        return None
    whole = constant.reshape((*(1,) * (len(shape) - constant.ndim), *constant.shape))
    if whole.shape[stack.axis] not in (1, len(stack.items)):
        return None
    return vector_of(whole.select(stack.axis, at if whole.shape[stack.axis] > 1 else 0), own)


def sum_of_stack(context: Context, node: fx.Node, call: Call) -> Lifted:
    """Lift the sum or mean of values that were stacked along that axis."""
    if call["keepdim"] or call["dtype"] is not None:
        return None
    stack = _stack(context, call["input"])
    if not isinstance(stack, _Stack):
        return stack
    dim = call["dim"]
    axes = tuple(dim) if isinstance(dim, (list, tuple)) else (dim,)
    if len(axes) != 1 or not isinstance(axes[0], int) or not _is_axis(stack, axes[0]):
        return None
    return _added(context, stack, (), 1.0 / len(stack.items) if call.name == "mean" else 1.0)


def _is_axis(stack: _Stack, dim: int) -> bool:
    return (dim if stack.shape is None else dim % len(stack.shape)) == stack.axis


def contract_stack(context: Context, value: Any, weight: Any, dim: int) -> Lifted:
    """Lift a product of a stack with a constant vector (K,), summed over the axis of the values.

    Args:
        context: what is known of the graph.
        value: what may be a stack.
        weight: what may be a constant.
        dim: the axis that is summed over.
    """
    stack = None if context.depends(weight) else _stack(context, value)
    if not isinstance(stack, _Stack) or stack.shape is None or not _is_axis(stack, dim):
        return stack if isinstance(stack, str) else None
    constant = _constant(context, weight)
    if not isinstance(constant, Tensor) or constant.ndim != 1:
        return constant if isinstance(constant, str) else None
    behind = len(stack.shape) - 1 - stack.axis
    return _added(context, stack, [constant.reshape(-1, *(1,) * behind)], 1.0)


def einsum_of_stack(context: Context, own: str, other: str, made: str, operands: Any) -> Lifted:
    """Lift an einsum that takes a stack's own axis away: "k,kbchw->bchw", "kc,kbchw->bchw".

    Args:
        context: what is known of the graph.
        own: the letters of the value, the ellipsis included.
        other: those of the constant.
        made: those of the result.
        operands: the value and the constant.
    """
    gone = [letter for letter in own if letter not in made]
    if len(gone) != 1 or own.replace(gone[0], "") != made or gone[0] not in other:
        return None
    value, weight = operands
    if other == gone[0] and (own.startswith(gone[0]) or "." not in own):
        return contract_stack(context, value, weight, own.index(gone[0]))
    letters, stack = set(other), _stack(context, value)
    if len(letters) < len(other) or not letters.issubset(own) or len(set(own)) < len(own):
        return None
    if not isinstance(stack, _Stack) or not _is_axis(stack, own.index(gone[0])):
        return stack if isinstance(stack, str) else None
    constant = _constant(context, weight)
    if not isinstance(constant, Tensor) or constant.ndim != len(other):
        return constant if isinstance(constant, str) else None
    turned = constant.permute([other.index(letter) for letter in own if letter in other])
    sizes = iter(turned.shape)
    spread = turned.reshape([next(sizes) if letter in other else 1 for letter in own])
    return _added(context, stack, [spread], 1.0)


STACKS: dict[str, Handler] = {"sum": sum_of_stack}
