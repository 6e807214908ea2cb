"""Which channels go: the least important of the whole network, down to what every layer keeps."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, inf

import torch
from torch import Tensor

from refold.errors import InputError
from refold.pruning.layers import Layer

Floor = int | float | Mapping[str, int | float]


def check_amount(ratio: float | None, threshold: float | None) -> None:
    """Refuse anything but one valid amount.

    Raises:
        InputError: when both or none are given, or one is out of range.
    """
    if (ratio is None) == (threshold is None):
        raise InputError("give either ratio, the share of channels to drop, or threshold")
    if ratio is not None and not 0 <= ratio < 1:
        raise InputError(f"ratio is a share of the channels, at least 0 and below 1, got {ratio}")
    if threshold is not None and not 0 <= threshold < inf:
        raise InputError(f"threshold is an importance, at least 0, got {threshold}")


def choose(
    layers: list[Layer],
    worth: list[Tensor],
    *,
    ratio: float | None,
    threshold: float | None,
    floor: Floor,
) -> dict[str, list[int]]:
    """Return the channels that go, for every layer that loses some.

    Args:
        layers: the layers that can lose channels.
        worth: the importance of each one's channels.
        ratio: the share of all channels that may go.
        threshold: the importance up to which they go.
        floor: how many, or which share, every layer keeps of those that could go; by path too.

    Raises:
        InputError: when a floor is not a number of channels, or names an unknown layer.
    """
    least = _floors(layers, floor)
    entries = [
        (float(values[row]), place, int(row))
        for place, (layer, values) in enumerate(zip(layers, worth, strict=True))
        for row in layer.rows
        if not bool(torch.isnan(values[row]))
    ]
    quota = len(entries) if ratio is None else int(ratio * len(entries) + 1e-9)
    spare = [len(layer.rows) - low for layer, low in zip(layers, least, strict=True)]
    chosen: dict[str, list[int]] = {}
    for value, place, row in sorted(entries):
        if not quota or (threshold is not None and value > threshold):
            break
        if spare[place] > 0:
            spare[place] -= 1
            quota -= 1
            chosen.setdefault(layers[place].path, []).append(row)
    return {path: sorted(rows) for path, rows in chosen.items()}


def _floors(layers: list[Layer], floor: Floor) -> list[int]:
    if not isinstance(floor, Mapping):
        return [_floor(layer, floor) for layer in layers]
    strange = set(floor) - {layer.path for layer in layers}
    if strange:
        raise InputError(f"floor names {sorted(strange)}, but no channel of theirs can go")
    return [_floor(layer, floor.get(layer.path, 1)) for layer in layers]


def _floor(layer: Layer, floor: float) -> int:
    is_share = isinstance(floor, float)
    if not (0 <= floor <= 1 if is_share else floor >= 1):
        raise InputError(f"floor is a number of channels, at least 1, or a share, got {floor}")
    return max(1, ceil(floor * len(layer.rows)) if is_share else int(floor))
