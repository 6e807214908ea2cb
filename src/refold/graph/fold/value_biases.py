"""The bias of an attention's values: through the attention, into the layer that reads its output.

The weights of an attention add up to one for every query, so that what every value has in common
comes out as it went in. That is so behind a softmax over the keys, and nothing else.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from refold.algebra.operator import Affine, Conv
from refold.errors import RefusedError
from refold.graph.calls import canonical, fact_of, place_of, reads_shape_only
from refold.graph.copies.modules import submodule
from refold.graph.fold.fold_pass import FoldPass
from refold.graph.fold.norms.gains import taken_in
from refold.graph.fold.norms.takers import Taker, conv_of, holds, is_layer, lowered, note
from refold.graph.lift.lifter import Lifter
from refold.graph.trace.frames import map_tree
from refold.graph.trace.overridden import layer_class

RULE = "value bias through attention"


@dataclass(frozen=True, eq=False)
class _Mix:
    """A weighted mean of values, over the axis before the last.

    Args:
        node: what computes it.
        value: what it takes the mean of.
        reason: why its weights may not add up to one.
    """

    node: fx.Node
    value: fx.Node
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class _Way:
    """What a bias passes: its layer, changes of layout, the mean, more of them, the reader."""

    layer: fx.Node
    before: tuple[fx.Node, ...]
    mix: _Mix
    behind: tuple[fx.Node, ...]
    reader: fx.Node

    @property
    def nodes(self) -> list[fx.Node]:
        return [self.layer, *self.before, self.mix.node, *self.behind, self.reader]


def push_value_biases(fold: FoldPass) -> None:
    """Give the biases of values to the layers behind; note why where that cannot be."""
    for node in list(fold.lifter.capture.graph.nodes):
        mix = _mix(fold.lifter, node)
        start = None if mix is None else _start(fold.lifter, mix.value)
        if mix is None or start is None:
            continue
        try:
            way = _way(fold.lifter, mix, *start)
            if way is not None:
                shift = _arriving(fold.lifter, way)
                made = taken_in(fold, way.reader, Affine(None, shift), (_conv(fold, way.reader),))
                fold.attempt(way.nodes, partial(_push, fold, way, made))
        except RefusedError as error:
            layer = start[0]
            fold.keep(layer, f"its bias stays: {error}")


# the mean


def _mix(lifter: Lifter, node: fx.Node) -> _Mix | None:
    """Return the mean that a call takes, None where it is no attention."""
    name = _name(node)
    if name == "attention":
        return _fused(node)
    if name not in ("matmul", "bmm"):
        return None
    weights, values = node.args if len(node.args) == 2 else (None, None)
    if not isinstance(weights, fx.Node) or not isinstance(values, fx.Node):
        return None
    return _Mix(node, values, _rounded(weights)) if _is_softmax(lifter, weights) else None


def _name(node: fx.Node) -> str:
    """Return our own name of a call of torch, empty for any other."""
    fact = fact_of(node)
    return "" if fact is None else fact.name


def _fused(node: fx.Node) -> _Mix | None:
    call = canonical(node)
    if call is None or not isinstance(call["value"], fx.Node):
        return None
    reason = None
    if call["attn_mask"] is not None:
        reason = "the mask of the attention may leave a query without keys"
    elif call["dropout_p"] != 0:
        reason = "dropout is active in the attention"
    elif call["enable_gqa"] is not False:
        reason = "its heads serve several queries each (enable_gqa)"
    return _Mix(node, call["value"], reason)


def _is_softmax(lifter: Lifter, node: fx.Node) -> bool:
    """Say whether a value is a softmax over its last axis."""
    shape = lifter.shape(node)
    if shape is None:
        return False
    if node.op == "call_module":
        module = submodule(lifter.capture.module, str(node.target))
        is_one = layer_class(module) is nn.Softmax
        return is_one and cast(nn.Softmax, module).dim in (-1, len(shape) - 1)
    call = canonical(node) if _name(node) == "softmax" else None
    return call is not None and call["dim"] in (-1, len(shape) - 1)


def _rounded(weights: fx.Node) -> str | None:
    call = canonical(weights)
    if call is not None and call.arguments.get("dtype") is not None:
        return "its softmax is computed in a precision of its own"
    return None


# the way


def _start(lifter: Lifter, value: fx.Node) -> tuple[fx.Node, tuple[fx.Node, ...]] | None:
    """Return the layer with a bias that makes the values, and the changes of layout behind it."""
    passed: list[fx.Node] = []
    while not is_layer(lifter, value):
        if not _is_layout(value):
            return None
        passed.append(value)
        value = cast(fx.Node, value.args[0])
    return (value, tuple(reversed(passed))) if conv_of(lifter, value).bias is not None else None


def _way(lifter: Lifter, mix: _Mix, layer: fx.Node, before: tuple[fx.Node, ...]) -> _Way | None:
    """Return the way of a bias; None where no layer with a bias is at its end.

    Raises:
        RefusedError: when it cannot take it.
    """
    behind: list[fx.Node] = []
    last = mix.node
    while len(found := _readers(last)) == 1 and _is_layout(found[0]):
        last = found[0]
        behind.append(last)
    reader = found[0] if len(found) == 1 else None
    if reader is None or not is_layer(lifter, reader) or conv_of(lifter, reader).bias is None:
        return None
    if mix.reason is not None:
        raise RefusedError(mix.reason)
    way = _Way(layer, before, mix, tuple(behind), reader)
    for value, after in zip((layer, *before), (*before, mix.node), strict=True):
        for user in _readers(value):
            if user is not after:
                raise RefusedError(f"{place_of(user)} reads its values as well")
    _must_stay_so(lifter, way)
    return way


def _must_stay_so(lifter: Lifter, way: _Way) -> None:
    """Refuse what another call may do otherwise, and weights that something else reads."""
    capture = lifter.capture
    held = (lifter.held(node) for node in way.nodes[:-1])
    for reason in (*held, holds(lifter, way.layer), holds(lifter, way.reader)):
        if reason is not None:
            raise RefusedError(reason)
    if capture.evidence is not None and (found := capture.evidence.objection(way.nodes, ())):
        raise RefusedError(found)


def _readers(value: fx.Node) -> list[fx.Node]:
    return [user for user in value.users if not reads_shape_only(user, value)]


_LAYOUTS = frozenset(
    {
        *("view", "reshape", "transpose", "permute", "same", "flatten", "unflatten", "movedim"),
        *("moveaxis", "swapaxes", "swapdims", "expand", "unsqueeze", "getitem"),
    }
)


def _is_layout(node: fx.Node) -> bool:
    """Say whether a call only moves numbers, or writes them several times."""
    if _name(node) not in _LAYOUTS:
        return False
    if _name(node) == "getitem":
        keys = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        return all(key is None or key is ... or key == slice(None) for key in keys)
    return bool(node.args) and isinstance(node.args[0], fx.Node)


# where the channels come out


def _arriving(lifter: Lifter, way: _Way) -> Tensor:
    """Return the bias as the reader is given it, channel by channel.

    The numbers of the channels go the way of the values.

    Raises:
        RefusedError: when the way moves channels between keys, or between queries.
    """
    bias = conv_of(lifter, way.layer).bias
    shape, end = lifter.shape(way.layer), lifter.shape(way.mix.node)
    if shape is None or end is None or bias is None:
        raise RefusedError("the shapes of the attention are not known")
    axis = _channels(lifter, way.layer, len(shape))
    sizes = [1] * len(shape)
    sizes[axis] = shape[axis]
    numbers = torch.arange(shape[axis]).view(sizes).expand(shape).contiguous()
    values = _moved(lifter, numbers, way.before)
    first = values.narrow(-2, 0, 1)
    if not bool((values == first).all()):
        raise RefusedError("its keys have channels of their own")
    found = _moved(lifter, first.expand(end), way.behind)
    rows = found.movedim(_channels(lifter, way.reader, found.ndim), 0).flatten(1)
    if not bool((rows == rows[:, :1]).all()):
        raise RefusedError(f"{place_of(way.reader)} works along another axis")
    return bias.detach()[rows[:, 0].to(bias.device)]


def _channels(lifter: Lifter, layer: fx.Node, rank: int) -> int:
    return rank - 1 - len(conv_of(lifter, layer).axes)


def _moved(lifter: Lifter, numbers: Tensor, steps: Iterable[fx.Node]) -> Tensor:
    for step in steps:
        rest = cast("tuple[Any, ...]", map_tree(partial(_known, lifter), step.args[1:]))
        named = cast("dict[str, Any]", map_tree(partial(_known, lifter), dict(step.kwargs)))
        if step.op == "call_method":
            numbers = getattr(numbers, str(step.target))(*rest, **named)
        else:
            numbers = cast(Any, step.target)(numbers, *rest, **named)
    return numbers


def _known(lifter: Lifter, leaf: Any) -> Any:
    """Return a number that is computed of sizes, as it is on the example."""
    if not isinstance(leaf, fx.Node):
        return leaf
    args = leaf.args
    if leaf.target in ("size", "numel") and isinstance(args[0], fx.Node):
        shape = lifter.shape(args[0])
        if shape is not None:
            return math.prod(shape) if leaf.target == "numel" else shape[cast(int, args[1])]
    if leaf.op == "call_function" and leaf.target in _ARITHMETIC:
        return cast(Any, leaf.target)(*(_known(lifter, item) for item in args))
    raise RefusedError(f"{leaf.name} decides on the layout")


_ARITHMETIC = frozenset(
    {operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.neg}
)

# the edit


def _conv(fold: FoldPass, node: fx.Node) -> Conv:
    return conv_of(fold.lifter, node)


def _push(fold: FoldPass, way: _Way, taken: Taker) -> bool:
    old, behind = _conv(fold, way.layer), _conv(fold, way.reader)
    bare = lowered(replace(old, bias=None), old)
    fold.editor.replace_module(way.layer, bare.module)
    fold.editor.replace_module(way.reader, taken.module)
    nodes, after = [way.layer, way.reader], [bare.op, taken.op]
    note(fold, RULE, nodes, [old, behind], after, at=[way.reader], detail=[way.layer])
    return True
