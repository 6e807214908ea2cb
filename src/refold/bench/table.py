"""What a benchmark found: rows of figures, and the machine they belong to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

_HEAD = ("runtime", "model", "median ms", "quartiles", "speed-up", "quartiles")


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


@dataclass(frozen=True, slots=True)
class BenchmarkRow:
    """One model on one runtime.

    `speedup` is the median over rounds of time(first model) / time(this model), both of the same
    round: what slows the machine for a moment slows both. `skipped` says why there are no figures.
    """

    runtime: str
    model: str
    milliseconds: Spread | None = None
    speedup: Spread | None = None
    skipped: str = ""


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
    """All rows, the input shapes, the number of rounds and the machine."""

    rows: tuple[BenchmarkRow, ...]
    shapes: tuple[tuple[int, ...], ...]
    rounds: int
    machine: Machine

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
        return asdict(self)

    def __str__(self) -> str:
        """Draw the table, the conditions under it."""
        cells = [_HEAD, *(_cells(row) for row in self.rows if not row.skipped)]
        widths = [max(len(line[column]) for line in cells) for column in range(len(_HEAD))]
        lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
        lines += [f"{row.runtime}  skipped: {row.skipped}" for row in self.rows if row.skipped]
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.shapes)
        return "\n".join([*lines, f"input {shapes}, {self.rounds} rounds in turn; {self.machine}"])


def _cells(row: BenchmarkRow) -> tuple[str, ...]:
    cells = [row.runtime, row.model]
    for spread, unit in ((row.milliseconds, ""), (row.speedup, "x")):
        if spread is None:
            cells += ["", ""]
        else:
            cells += [f"{spread.median:.3g}{unit}", f"{spread.low:.3g}-{spread.high:.3g}"]
    return tuple(cells)
