"""The results of a study: rows of figures, as a table, as numbers and as a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from refold.table import render
from refold.training.loop.run_folder import METRICS, SUMMARY
from refold.training.studies.runs import DIVERGED, GRADIENTS


@dataclass(frozen=True)
class Row:
    """The results of a variant.

    Args:
        name: of the variant.
        values: the judgement of each seed that came to an end, as a share of 1.
        cells: further columns of the table, by title.
        diverged: runs that did not come to an end.
        gradients: their correlation in each seed, at the start and trained.
    """

    name: str
    values: tuple[float, ...]
    cells: dict[str, str]
    diverged: int = 0
    gradients: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])

    def __str__(self) -> str:
        parts = [f"{mean(self.values):.2%}"] if self.values else []
        if len(self.values) > 1:
            parts = [f"{parts[0]} ± {self.spread:.2%}"]
        if self.diverged:
            parts.append(f"{self.diverged} diverged")
        return ", ".join(parts)

    @property
    def spread(self) -> float:
        """The standard deviation over the seeds; 0 for one."""
        return spread(self.values)


@dataclass(frozen=True)
class Report:
    """A finished comparison.

    Args:
        title: what it asked.
        unit: of the values.
        rows: of the table.
        path: of the table in Markdown; the plot and the numbers lie beside it.
        seeds: how many runs a row is made of.
        by_depth: whether the rows are named KIND-LAYERS.
    """

    title: str
    unit: str
    rows: tuple[Row, ...]
    path: Path
    seeds: int
    by_depth: bool = False

    def __str__(self) -> str:
        head, *body = self.table()
        return render(head, body)

    def table(self) -> list[list[str]]:
        """Return the table, its head first."""
        columns = list(dict.fromkeys(title for row in self.rows for title in row.cells))
        body = [
            [row.name, str(row), *(row.cells.get(title, "-") for title in columns)]
            for row in self.rows
        ]
        return [["", self.unit, *columns], *body]

    def legend(self) -> list[str]:
        """Return a line for each column that says what it is."""
        titles = [self.unit, *dict.fromkeys(title for row in self.rows for title in row.cells)]
        return [f"- {title}: {LEGEND[title]}" for title in titles if title in LEGEND]

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers for JSON."""
        return {
            row.name: {
                "values": row.values,
                **({"diverged": row.diverged} if row.diverged else {}),
                **({"gradients": dict(row.gradients)} if row.gradients else {}),
            }
            for row in self.rows
        }


LEGEND = {
    "top-1": "right answers on the validation images after the last epoch, in the train form",
    "parameters": "train form -> deployed form",
    "multiply-adds": "of one image, train form -> deployed form",
    "same answers": "validation images, over all seeds, of which both forms say the same class",
    "float64 error": "largest error of the fold in float64, relative to the largest output",
    "gradients' correlation, start": "of gradients at neighbours on a line between two images, "
    "before training",
    "gradients' correlation, trained": "the same after training",
    "lost by the best linear map": "squared error of the spiral brought back by the best linear "
    "map, over the spiral's own square",
    "by the pseudo-inverse": "the same for the pseudo-inverse of the map that the spiral went by",
    "points that collapse": "points of which fewer than two numbers survive",
}
"""What each column of a table is."""


def spread(values: Sequence[float]) -> float:
    """Return the standard deviation; 0 for one value.

    Examples:
        >>> spread([1.0, 2.0, 3.0]), spread([5.0])
        (1.0, 0.0)
    """
    return stdev(values) if len(values) > 1 else 0.0


def row_of(variant: str, runs: Sequence[Path]) -> Row:
    """Return the results of a variant's runs."""
    ended = [run for run in runs if not (run / DIVERGED).is_file()]
    if not ended:
        return Row(variant, (), {}, len(runs))
    summaries = [json.loads((run / SUMMARY).read_text()) for run in ended]
    measured = [run / GRADIENTS for run in ended if (run / GRADIENTS).is_file()]
    found = [json.loads(path.read_text()) for path in measured]
    gradients = {
        name: tuple(one[name] for one in found) for name in (found[0] if found else ())
    }  # fmt: skip
    cells = _cells(summaries) | {
        f"gradients' correlation, {name}": f"{mean(values):.3f}"
        for name, values in gradients.items()
    }
    values = tuple(_last_judgement(run) for run in ended)
    return Row(variant, values, cells, len(runs) - len(ended), gradients)


def _cells(summaries: Sequence[Any]) -> dict[str, str]:
    before, after = summaries[0]["train_form"], summaries[0]["deployed_form"]
    error = max(summary["error"]["float64"] for summary in summaries)
    same = sum(summary["same_answers"] for summary in summaries)
    return {
        "parameters": f"{before['parameters'] / 1e3:.1f} k -> {after['parameters'] / 1e3:.1f} k",
        "multiply-adds": f"{before['macs'] / 1e6:.2f} M -> {after['macs'] / 1e6:.2f} M",
        "same answers": f"{same} of {sum(summary['answers'] for summary in summaries)}",
        "float64 error": f"{error:.1e}",
    }


def _last_judgement(run: Path) -> float:
    records = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    return float(next(r for r in reversed(records) if r["kind"] == "epoch")["val_top1"])
