"""What a benchmark found: rows of figures, and the machine they belong to."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from statistics import median, quantiles
from typing import Any

_HEAD = (
    "runtime", "model", "median ms", "quartiles", "CPU ms", "peak MiB", "speed-up", "95 %", "",
)  # fmt: skip
_DRAWS = 2000  # of the bootstrap
_WIDE = 0.1  # a wider interval, as a share of the ratio on either side, says little
NO_DIFFERENCE, UNSURE = "no difference shown", "unsure"


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles of repeated measurements."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Summarise one or more values.

        Examples:
            >>> Spread.of([1.0, 2.0, 3.0, 4.0, 5.0])
            Spread(low=2.0, median=3.0, high=4.0)
        """
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, _, high = quantiles(values, method="inclusive")
        return cls(low, median(values), high)


def interval(*groups: Sequence[float]) -> tuple[float, float]:
    """Return where the median of such values lies 95 times in 100, by the bootstrap.

    The draws are the same every time: the same values have the same interval.

    Args:
        groups: values that share what they depend on, and are drawn together; one group holds
            values of which each stands alone.

    Examples:
        >>> interval([2.0, 2.0, 2.0])
        (2.0, 2.0)
        >>> interval([2.0, 2.0, 2.0], [3.0, 3.0, 3.0])
        (2.0, 3.0)
    """
    drawn = random.Random(0)
    parts = groups if len(groups) > 1 else [[value] for group in groups for value in group]
    medians = sorted(
        median(chain.from_iterable(drawn.choices(parts, k=len(parts)))) for _ in range(_DRAWS)
    )
    return medians[round(0.025 * _DRAWS)], medians[round(0.975 * _DRAWS) - 1]


@dataclass(frozen=True, slots=True)
class BenchmarkRow:
    """One model on one runtime.

    Args:
        runtime: its name.
        model: its name.
        milliseconds: of a call, by the clock on the wall.
        cpu_milliseconds: median of what all threads of the process took for a call.
        peak_mib: memory that a call took at its peak, beyond what the process held before; None
            where the system does not tell.
        speedup: time(first model) / time(this model), both of the same round: what slows the
            machine for a moment slows both.
        interval: where the median speed-up lies with 95 % confidence; None for the first model.
        skipped: why there are no figures.
    """

    runtime: str
    model: str
    milliseconds: Spread | None = None
    cpu_milliseconds: float | None = None
    peak_mib: float | None = None
    speedup: Spread | None = None
    interval: tuple[float, float] | None = None
    skipped: str = ""

    @property
    def verdict(self) -> str:
        """Say where the speed-up cannot be believed: the interval holds 1, or is wide.

        Examples:
            >>> BenchmarkRow("eager", "b", interval=(0.98, 1.03)).verdict
            'no difference shown'
        """
        if self.interval is None:
            return ""
        low, high = self.interval
        if low <= 1 <= high:
            return NO_DIFFERENCE
        return UNSURE if (high - low) / (high + low) > _WIDE else ""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the verdict as plain values for JSON."""
        return {**asdict(self), "verdict": self.verdict}

    def __str__(self) -> str:
        """Say it in one line.

        Examples:
            >>> print(BenchmarkRow("eager", "after", Spread(1.0, 1.25, 1.5)))
            eager, after: 1.25 ms
        """
        if self.milliseconds is None:
            return f"{self.runtime}, {self.model}: skipped: {self.skipped}"
        gain = ""
        if self.speedup is not None:
            gain = f", {self.speedup.median:.2f} times as fast as the first"
        verdict = f" ({self.verdict})" if self.verdict else ""
        return f"{self.runtime}, {self.model}: {self.milliseconds.median:.3g} ms{gain}{verdict}"


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the figures were taken; they hold nowhere else."""

    processor: str
    system: str
    threads: int
    device: str
    dtype: str
    versions: dict[str, str]

    def __str__(self) -> str:
        """Say it in one line."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return (
            f"{self.processor}, {self.system}, {self.threads} threads, {self.device}, "
            f"{self.dtype}; {versions}"
        )


@dataclass(frozen=True, slots=True)
class BenchmarkTable:
    """All rows, and the conditions they were measured under.

    Args:
        rows: one for each model on each runtime.
        shapes: of the inputs.
        rounds: how often each model was measured, in turn.
        machine: where.
        warm_up: calls of each model before the first round.
    """

    rows: tuple[BenchmarkRow, ...]
    shapes: tuple[tuple[int, ...], ...]
    rounds: int
    machine: Machine
    warm_up: int = 0

    def row(self, runtime: str, model: str) -> BenchmarkRow:
        """Return the row of a model on a runtime.

        Raises:
            KeyError: When there is none.
        """
        for row in self.rows:
            if (row.runtime, row.model) == (runtime, model):
                return row
        raise KeyError((runtime, model))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "rows": [row.to_dict() for row in self.rows]}

    def __str__(self) -> str:
        """Draw the table, the conditions under it."""
        cells = [_HEAD, *(_cells(row) for row in self.rows if not row.skipped)]
        widths = [max(len(line[column]) for line in cells) for column in range(len(_HEAD))]
        lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
        lines += [f"{row.runtime}  skipped: {row.skipped}" for row in self.rows if row.skipped]
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.shapes)
        lines.append(
            f"input {shapes}, {self.rounds} rounds in turn after {self.warm_up} calls to warm up; "
            f"{self.machine}"
        )
        if any(row.verdict == UNSURE for row in self.rows):
            lines.append(
                f"{UNSURE}: the interval is wider than ±{_WIDE:.0%}; let other work end, or give "
                "more rounds"
            )
        return "\n".join(lines)


def _cells(row: BenchmarkRow) -> tuple[str, ...]:
    time, ratio, sure = row.milliseconds, row.speedup, row.interval
    return (
        row.runtime,
        row.model,
        "" if time is None else f"{time.median:.3g}",
        "" if time is None else f"{time.low:.3g}-{time.high:.3g}",
        "" if row.cpu_milliseconds is None else f"{row.cpu_milliseconds:.3g}",
        "" if row.peak_mib is None else f"{row.peak_mib:.1f}",
        "" if ratio is None else f"{ratio.median:.3g}x",
        "" if sure is None else f"{sure[0]:.3g}-{sure[1]:.3g}",
        row.verdict,
    )
