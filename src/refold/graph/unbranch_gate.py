"""Gates of a branch (squeeze and excite): open for channels that ride along, unchanged for others.

Source: squeeze and excite, arXiv:1709.01507; the open rows are RMNet's, arXiv:2111.00687.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from refold.algebra.operator import Conv, Identity, Operator, Resample
from refold.errors import RefusedError
from refold.graph.branch_links import Link, flat, pools, sigmoids
from refold.graph.calls import canonical
from refold.graph.lower import Like, lower
from refold.graph.reserve import Slots

OPEN = 100.0
"""A gate's input for carried channels: its sigmoid is exactly 1 in every precision."""


def wider_gate(
    steps: tuple[Link, ...], slots: Slots, like: Like, *, is_first: bool
) -> list[tuple[Link, nn.Module]]:
    """Return the new layers of a gate that reads and gates channels which ride along.

    Args:
        steps: from the gated value to the factor.
        slots: the channels of that value.
        like: precision and device.
        is_first: whether the gated value is the one that the block starts from.

    Raises:
        RefusedError: when the gate is of another kind.
    """
    items = flat(steps)
    places = [place for place, (_, op) in enumerate(items) if isinstance(op, Conv)]
    if not places or not all(pools(step) for step, _ in items[: places[0]]):
        raise RefusedError("its gate has no layer in which channels that ride could be left out")
    tail = [step for step, op in items[places[-1] + 1 :] if not isinstance(op, Identity)]
    opens = [step for step in tail if sigmoids(step)]
    if len(opens) != 1 or not all(pools(step) for step in tail if step not in opens):
        raise RefusedError("its gate does not end in a sigmoid, which is 1 for large numbers")
    for step, op in items:
        _check_reshape(step, op, is_first)
    layers: list[tuple[Link, nn.Module]] = []
    for place in sorted({places[0], places[-1]}):
        step, op = items[place]
        conv = _dense(step, op)
        if place == places[0]:
            conv = _blind(conv, slots)
        if place == places[-1]:
            conv = _open(conv, slots)
        layers.append((step, lower(conv, like)))
    return layers


def _check_reshape(step: Link, op: Operator | None, is_first: bool) -> None:
    """Refuse a reshape that states the number of channels, which is about to change."""
    if not isinstance(op, Resample) or not op.counted:
        return
    call = canonical(step.node)
    sizes = call.arguments.get("shape") if call is not None else None
    stated = not isinstance(sizes, (tuple, list)) or isinstance(sizes[1], int)
    if stated or is_first:
        raise RefusedError("its gate reshapes to a fixed number of channels")


def _dense(step: Link, op: Operator | None) -> Conv:
    single = len(step.ops) == 1
    if isinstance(op, Conv) and op.groups == 1 and not op.transposed and op.is_pointwise and single:
        return op
    raise RefusedError("its gate is not made of dense layers")


def _blind(conv: Conv, slots: Slots) -> Conv:
    """Return a gate's layer that reads the wider value and looks at the branch's channels only."""
    weight = conv.weight.detach()
    wide = weight.new_zeros(weight.shape[0], len(slots), *weight.shape[2:])
    places, order = _own(slots)
    wide[:, places] = weight[:, order]
    return replace(conv, weight=wide)


def _open(conv: Conv, slots: Slots) -> Conv:
    """Return a gate's layer that also gives a number for every carried channel: always open."""
    weight = conv.weight.detach()
    wide = weight.new_zeros(len(slots), *weight.shape[1:])
    bias = weight.new_full((len(slots),), OPEN)
    places, order = _own(slots)
    wide[places] = weight[order]
    bias[places] = 0.0 if conv.bias is None else conv.bias.detach()[order]
    return replace(conv, weight=wide, bias=bias)


def _own(slots: Slots) -> tuple[list[int], list[int]]:
    """Return where the branch's own channels lie, and which they are."""
    places = [place for place, (main, _) in enumerate(slots) if main >= 0]
    return places, [slots[place][0] for place in places]
