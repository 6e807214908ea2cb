"""How much faster one form of a network is than another, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from refold.bench import Pairs
from refold.inputs import Arguments


class Speed(NamedTuple):
    """A speedup: the median of paired rounds, and its 95 % interval."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        """Say it in one word.

        Examples:
            >>> print(Speed(1.1, 1.2, 1.3))
            1.20 (1.10 to 1.30)
        """
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


Measure = Callable[[nn.Module, nn.Module], Speed | str]
"""Returns how many times as fast the second network is as the first, or why it cannot run."""


def by_clock(inputs: Arguments, runtime: str, rounds: int) -> Measure:
    """Return a measure that times both in turn; a network that comes again is built once.

    Args:
        inputs: what they run on.
        runtime: where.
        rounds: how often each is timed.
    """
    pairs = Pairs(inputs, runtime, rounds)

    def compare(first: nn.Module, second: nn.Module) -> Speed | str:
        row = pairs(first, second)
        if row.interval is None or row.speedup is None:
            return row.skipped or "the other form cannot run"
        low, high = row.interval
        return Speed(low, row.speedup.median, high)

    return compare
