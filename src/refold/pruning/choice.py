"""Which channels go: the least important of the whole network, down to what every layer keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import ceil, inf
from typing import Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from refold.errors import InputError, RefusedError, require_kind
from refold.pruning.layers import Layer
from refold.workload import Workload

T = TypeVar("T")
Floor = int | float | Mapping[str, int | float]
Chosen = dict[str, list[int]]
"""The channels that go, by layer."""
_BLOCK = 16  # channels that a wide vector unit computes at once
_WIDE = 64  # channels of a layer from which it keeps multiples of so many
_ROUNDS = 9  # of halving: the ratio is then found to a few thousandths
_NEAR = 0.95  # of a budget: what uses less of it is worth a second search


@dataclass(frozen=True)
class Amount:
    """How much goes; one of these is given.

    Args:
        ratio: the share of the channels that may go.
        threshold: channels of at most this importance go.
        macs: the multiply-adds that are left: a share below 1, or their number above it.
        params: the same of the parameters.
        latency: the share of the time that is left.

    Raises:
        InputError: when none or several are given, or one is out of range.
    """

    ratio: float | None = None
    threshold: float | None = None
    macs: float | None = None
    params: float | None = None
    latency: float | None = None

    def __post_init__(self) -> None:
        if sum(value is not None for value in vars(self).values()) != 1:
            raise InputError(
                "give one of ratio (the share of channels to drop), threshold, macs, params and "
                "latency"
            )
        for name, value in vars(self).items():
            require_kind(name, 0 if value is None else value, (int, float), "a number")
        if self.latency is not None and not 0 < self.latency < 1:
            raise InputError(f"latency must be a share below 1 of the time, got {self.latency}")
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise InputError(
                f"ratio must be a share of the channels, at least 0 and below 1, got {self.ratio}"
            )
        if self.threshold is not None and not 0 <= self.threshold < inf:
            raise InputError(f"threshold must be an importance, at least 0, got {self.threshold}")
        for name in ("macs", "params"):
            value = getattr(self, name)
            if value is not None and not _is_share_or_count(value):
                raise InputError(
                    f"{name} must be a share between 0 and 1, or a whole number above 1, got "
                    f"{value}"
                )

    def budget(self, before: Workload, clock: Clock | None) -> Budget | None:
        """Return what the result may cost at most; None where that is not what was given.

        Args:
            before: the cost of the folded network.
            clock: returns the share of the folded network's time that another one takes.

        Raises:
            InputError: when time is to be measured and there is no clock.
        """
        if self.macs is not None:
            whole = before.macs or 0
            return Budget("multiply-adds", _part(self.macs, whole), _macs, whole)
        if self.params is not None:
            whole = before.parameters
            return Budget("parameters", _part(self.params, whole), _parameters, whole)
        if self.latency is None:
            return None
        if clock is None:
            raise InputError(
                "latency is measured: pass clock as well, such as "
                "refold.bench.share_of_time(example_inputs, 'onnxruntime')"
            )
        return Budget("of its time", self.latency, partial(_time, clock))


Clock = Callable[[nn.Module], float]


def _macs(model: nn.Module, cost: Workload) -> float:
    return cost.macs or 0


def _parameters(model: nn.Module, cost: Workload) -> float:
    return cost.parameters


def _time(clock: Clock, model: nn.Module, cost: Workload) -> float:
    return clock(model)


class Budget(NamedTuple):
    """How much there may be of something.

    Args:
        what: its name.
        most: what there may be.
        of: how much there is, told from a network and its workload.
        whole: how much of it the folded network has.
    """

    what: str
    most: float
    of: Callable[[nn.Module, Workload], float]
    whole: float = 1

    def reachable(self, least: float) -> str:
        """Return what can be asked for, for people; a ratio where no target is in reach."""
        if least > self.whole:
            return "a ratio"
        share = f"a share between {ceil(100 * least / self.whole) / 100:.2f} and 1"
        counts = f"{self.shown(least)} to {self.shown(self.whole)} of them, or for "
        return f"{counts if self.whole > 1 else ''}{share}"

    @staticmethod
    def shown(amount: float) -> str:
        """Return an amount for people: a count, or a share."""
        return f"{amount:,.0f}" if amount > 1 else f"{amount:.2f}"


class _Found(NamedTuple, Generic[T]):
    """The smallest ratio that keeps to a budget, one below it that does not, and what it gives."""

    below: float
    ratio: float
    result: T
    cost: float


def within(budget: Budget, attempt: Callable[[float], tuple[T, float]]) -> T:
    """Return what the smallest ratio gives that keeps to a budget.

    Args:
        budget: what there may be.
        attempt: returns the result for a ratio, and what it costs.

    Raises:
        RefusedError: when no ratio leads to so little.
    """
    return _smallest(budget, attempt).result


def closest(
    budget: Budget, chosen: Callable[[float], Chosen], attempt: Callable[[Chosen], tuple[T, float]]
) -> T:
    """Return what the smallest ratio gives, or other channels that leave more of a budget unspent.

    In a chain one block of channels can take a tenth of the whole along. Where that leads far below
    the budget, the layers that lose such a block keep it, and the others lose more.

    Args:
        budget: what there may be.
        chosen: returns the channels that go, for a ratio.
        attempt: returns the result without some channels, and what it costs.

    Raises:
        RefusedError: when no ratio leads to so little.
    """
    tried: dict[str, tuple[T, float]] = {}

    def once(silenced: Chosen) -> tuple[T, float]:
        key = str(sorted(silenced.items()))
        if key not in tried:
            tried[key] = attempt(silenced)
        return tried[key]

    first = _smallest(budget, lambda ratio: once(chosen(ratio)))
    if first.cost >= _NEAR * budget.most:
        return first.result
    fewer, more = chosen(first.below), chosen(first.ratio)
    held = {path: fewer.get(path, []) for path in more if more[path] != fewer.get(path)}

    def beside(ratio: float) -> tuple[T, float]:
        silenced = {**chosen(ratio), **held}
        return once({path: rows for path, rows in silenced.items() if rows})

    try:
        second = _smallest(budget, beside, first.below)
    except RefusedError:
        return first.result
    return max(first, second, key=lambda found: found.cost).result


def _smallest(
    budget: Budget, attempt: Callable[[float], tuple[T, float]], low: float = 0.0
) -> _Found[T]:
    high, best = 1.0, None
    for _ in range(_ROUNDS):
        ratio = (low + high) / 2
        result, cost = attempt(ratio)
        if cost <= budget.most:
            high, best = ratio, (result, cost)
        else:
            low = ratio
    if best is None:
        least = attempt(1 - 1e-9)[1]
        raise RefusedError(
            f"dropping channels alone takes this network to {budget.shown(least)} "
            f"{budget.what}, not to {budget.shown(budget.most)}: ask for "
            f"{budget.reachable(least)}, lower floor or round_to, or pass remove_residuals=True"
        )
    return _Found(low, high, *best)


def check_step(round_to: int) -> int:
    """Return `round_to` if it is one.

    Raises:
        InputError: when it is not a positive whole number.
    """
    if not isinstance(cast(object, round_to), int) or round_to < 1:
        raise InputError(f"round_to must be a number of channels, at least 1, got {round_to!r}")
    return round_to


def _is_share_or_count(value: float) -> bool:
    return 0 < value < 1 or (1 < value < inf and value == int(value))


def _part(wanted: float, whole: int) -> int:
    return int(wanted * whole) if wanted < 1 else int(wanted)


def step_of(width: int, round_to: int) -> int:
    """Return whose multiples a layer keeps: 16 instead of 8 where that is a quarter of it at most.

    Runtimes compute 8 or 16 channels at once, by the processor; all are multiples of 8.

    Examples:
        >>> step_of(64, 8), step_of(56, 8), step_of(64, 4), step_of(64, 1)
        (16, 8, 4, 1)
    """
    return _BLOCK if 2 * round_to == _BLOCK and width >= _WIDE else round_to


def rounded(width: int, left: int, round_to: int) -> int:
    """Return how many channels a layer keeps, in multiples of its step, of which `left` must stay.

    A layer of fewer channels than one step has no multiple, and keeps what must stay.

    Examples:
        >>> rounded(48, 17, 8), rounded(20, 17, 8), rounded(6, 2, 8), rounded(48, 17, 1)
        (24, 20, 2, 17)
        >>> rounded(64, 17, 8)
        32
    """
    step = step_of(width, round_to)
    return left if width < step else min(width, -(-left // step) * step)


def choose(
    layers: list[Layer],
    worth: list[Tensor],
    *,
    ratio: float | None,
    threshold: float | None,
    floor: Floor,
    round_to: int,
) -> Chosen:
    """Return the channels that go, for every layer that loses some.

    Args:
        layers: the layers that can lose channels.
        worth: the importance of each one's channels.
        ratio: the share of all channels that may go.
        threshold: the importance up to which they go.
        floor: how many, or which share, every layer keeps of those that could go; by path too.
        round_to: every layer that loses channels keeps a multiple of so many.

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
    chosen: Chosen = {}
    for value, place, row in sorted(entries):
        if not quota or (threshold is not None and value > threshold):
            break
        if spare[place] > 0:
            spare[place] -= 1
            quota -= 1
            chosen.setdefault(layers[place].path, []).append(row)
    widths = {layer.path: len(layer.weight) for layer in layers}
    for path, rows in chosen.items():  # the last ones of each are worth the most
        width = widths[path]
        del rows[width - rounded(width, width - len(rows), round_to) :]
    return {path: sorted(rows) for path, rows in chosen.items() if rows}


def _floors(layers: list[Layer], floor: Floor) -> list[int]:
    if not isinstance(floor, Mapping):
        return [_floor(layer, floor) for layer in layers]
    strange = set(floor) - {layer.path for layer in layers}
    if strange:
        raise InputError(f"floor names {sorted(strange)}, none of whose channels can go")
    return [_floor(layer, floor.get(layer.path, 1)) for layer in layers]


def _floor(layer: Layer, floor: float) -> int:
    require_kind("floor", floor, (int, float), "a number of channels, or a share")
    is_share = isinstance(floor, float)
    if not (0 <= floor <= 1 if is_share else floor >= 1):
        raise InputError(f"floor must be a number of channels, at least 1, or a share, got {floor}")
    return max(1, ceil(floor * len(layer.rows)) if is_share else int(floor))
