"""Intervals: what is known of the numbers in a value, and the arithmetic that keeps it true."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isnan


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`; without limits where nothing is known.

    Limits hold in exact arithmetic: a mean of numbers up to 6 may round to a hair more than 6.

    Examples:
        >>> Interval(-1, 2) * Interval(3, 4)
        Interval(low=-4, high=8)
    """

    low: float = -inf
    high: float = inf

    def __post_init__(self) -> None:
        if isnan(self.low) or isnan(self.high) or self.low > self.high:
            object.__setattr__(self, "low", -inf)
            object.__setattr__(self, "high", inf)

    @property
    def is_known(self) -> bool:
        """Whether either limit says anything."""
        return self.low > -inf or self.high < inf

    def lies_in(self, other: Interval) -> bool:
        """Say whether every number of this interval is one of the other's."""
        return other.low <= self.low and self.high <= other.high

    def hull(self, other: Interval) -> Interval:
        """Return the smallest interval that holds both."""
        return Interval(min(self.low, other.low), max(self.high, other.high))

    def __add__(self, other: Interval) -> Interval:
        return Interval(self.low + other.low, self.high + other.high)

    def __neg__(self) -> Interval:
        return Interval(-self.high, -self.low)

    def __mul__(self, other: Interval) -> Interval:
        ends = [times(a, b) for a in (self.low, self.high) for b in (other.low, other.high)]
        return Interval(min(ends), max(ends))


UNKNOWN = Interval()


def times(factor: float, number: float) -> float:
    """Return the product, 0 where a factor is 0 even if the limit is infinite.

    Examples:
        >>> times(0.0, inf)
        0.0
    """
    return 0.0 if factor == 0 or number == 0 else factor * number


def point(number: float) -> Interval:
    """Return the interval of one number."""
    return Interval(float(number), float(number))
