"""The plot of a study: a line of points for each variant, or curves over the depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from refold.errors import MissingDependencyError
from refold.files import atomic_path
from refold.training.studies.report import Report, Row, spread

_MARKS = "osD^v"


def plot(report: Report, path: Path) -> None:
    """Write the plot of a study.

    Args:
        report: what to draw.
        path: of the file; its suffix says the format.

    Raises:
        MissingDependencyError: when matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "the plot of a study needs matplotlib: run pip install 'refold[train]'"
        ) from error
    draw = _by_depth if report.by_depth else _points
    # Without the salt and the date the same figures would give another file each time.
    with rc_context({"svg.hashsalt": "refold"}), atomic_path(path) as temporary:
        figure = Figure(layout="constrained")
        draw(figure, report)
        figure.savefig(temporary, metadata={"Date": None})


def _points(figure: Any, report: Report) -> None:
    """Draw a line for each variant: its seeds, their mean and their spread."""
    rows = report.rows
    figure.set_size_inches(7, 0.45 * len(rows) + 1.2)
    axes = figure.add_subplot()
    places = list(range(len(rows)))[::-1]
    for place, row in zip(places, rows, strict=True):
        if not row.values:
            axes.text(0.5, place, "diverged", transform=axes.get_yaxis_transform(), ha="center")
            continue
        values = [100 * value for value in row.values]
        axes.plot(values, [place] * len(values), "o", color="0.65", markersize=4)
        axes.errorbar(mean(values), place, xerr=100 * row.spread, fmt="D", color="C0", capsize=3)
    axes.set_yticks(places, [row.name for row in rows])
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xlabel(f"{report.unit}, % (each seed, mean and standard deviation)")
    axes.grid(axis="x", alpha=0.3)


def _by_depth(figure: Any, report: Report) -> None:
    """Draw what a network achieves over its layers, and the correlation of its gradients."""
    figure.set_size_inches(9, 3.6)
    left, right = figure.subplots(1, 2)
    _curves(left, report.rows, lambda row: [100 * value for value in row.values], "-")
    left.set_ylabel(f"{report.unit}, %")
    for name, style in (("start", ":"), ("trained", "-")):
        _curves(right, report.rows, lambda row, at=name: row.gradients.get(at, ()), style, name)
    right.set_ylabel("correlation of neighbouring gradients")
    for axes in (left, right):
        axes.set_xlabel("layers (mean and standard deviation of the seeds)")
        axes.set_xscale("log")
        layers = sorted({_place(row)[1] for row in report.rows})
        axes.set_xticks(layers, map(str, layers))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")


def _curves(
    axes: Any, rows: Sequence[Row], values_of: Callable[[Row], Sequence[float]], style: str,
    suffix: str = "",
) -> None:  # fmt: skip
    for number, kind in enumerate(dict.fromkeys(_place(row)[0] for row in rows)):
        mine = [row for row in rows if _place(row)[0] == kind and values_of(row)]
        layers = [_place(row)[1] for row in mine]
        found = [values_of(row) for row in mine]
        axes.errorbar(
            layers, list(map(mean, found)), list(map(spread, found)), color=f"C{number}",
            linestyle=style, marker=_MARKS[number % len(_MARKS)], markersize=4, capsize=3,
            label=f"{kind}, {suffix}" if suffix else kind,
        )  # fmt: skip


def _place(row: Row) -> tuple[str, int]:
    """Return kind and layers, which the name of a row is made of."""
    kind, _, layers = row.name.rpartition("-")
    return kind, int(layers)
