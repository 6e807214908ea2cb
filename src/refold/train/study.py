"""Run a comparison of the articles: several seeds a variant, one table, one plot.

A study that was stopped goes on where it was: a run that is done is only read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from refold.errors import InputError, MissingDependencyError
from refold.files import atomic_path
from refold.table import render
from refold.train.folder import CONFIG, METRICS, SUMMARY
from refold.train.habits import Habits
from refold.train.manifold import losses
from refold.train.report import Reporter
from refold.train.run import train
from refold.train.studies import MANIFOLD, Study, study_of


@dataclass(frozen=True)
class Row:
    """What a variant brought.

    Args:
        name: of the variant.
        values: the judgement of each seed, as a share of 1.
        cells: further columns of the table, by title.
    """

    name: str
    values: tuple[float, ...]
    cells: dict[str, str]

    @property
    def spread(self) -> float:
        """The standard deviation over the seeds; 0 for one."""
        return stdev(self.values) if len(self.values) > 1 else 0.0


@dataclass(frozen=True)
class Report:
    """A comparison that is done.

    Args:
        title: what it asked.
        unit: of the values.
        rows: of the table.
        path: of the table in Markdown; the plot and the numbers lie beside it.
    """

    title: str
    unit: str
    rows: tuple[Row, ...]
    path: Path

    def __str__(self) -> str:
        columns = list(self.rows[0].cells)
        rows = [[row.name, _cell(row), *(row.cells[c] for c in columns)] for row in self.rows]
        return render(["", self.unit, *columns], rows)


def _cell(row: Row) -> str:
    return f"{mean(row.values):.2%} ± {row.spread:.2%}"


def study(
    name: str,
    output: str | Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    data: str | Path | None = None,
    changes: Mapping[str, Any] | None = None,
    only: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> Report:
    """Run a comparison, or what is left of it, and write its table and its plot.

    The judgement is that of the last epoch, so that no variant gains by a choice on test images.

    Args:
        name: of `refold.train.STUDIES`, or "manifold".
        output: a folder, for this study alone.
        seeds: one run each.
        data: the images; the digits where None.
        changes: to the recipe of all variants, by dotted key.
        only: names of variants; all where empty.
        reporter: is told how the runs go.

    Raises:
        InputError: when there is no such study or variant.
        TrainingError: when a run diverges.
    """
    if not seeds:
        raise InputError("a study needs at least one seed")
    folder = Path(output)
    if name == MANIFOLD:
        return _write(_manifold(folder, seeds), folder, name)
    chosen, reporter = study_of(name), reporter or Reporter()
    unknown = set(only) - set(chosen.variants)
    if unknown:
        raise InputError(
            f"{name} has no variant {', '.join(sorted(unknown))}: it has "
            f"{', '.join(chosen.variants)}"
        )
    rows: list[Row] = []
    for variant in only or chosen.variants:
        runs: list[Path] = []
        for seed in seeds:
            reporter.note(f"{name}: {variant}, seed {seed}")
            run = folder / "runs" / re.sub(r"[^a-zA-Z0-9.]+", "-", variant).lower() / f"seed-{seed}"
            settings = {
                **chosen.shared, **chosen.variants[variant], **(changes or {}), "seed": seed
            }  # fmt: skip
            _settle(run, data, settings, reporter)
            runs.append(run)
        rows.append(_row(variant, runs))
    return _write(_report(chosen, tuple(rows), folder, name), folder, name)


def _settle(
    run: Path, data: str | Path | None, settings: Mapping[str, Any], reporter: Reporter
) -> None:
    """Do a run, or the rest of it; leave it alone when it is done."""
    if (run / SUMMARY).is_file():
        return
    run.parent.mkdir(parents=True, exist_ok=True)
    begun = (run / CONFIG).is_file()
    train(
        None if begun else "digits", output=run, data=None if begun else data,
        changes=None if begun else settings, resume=begun, tracker="none",
        habits=Habits(workers=1), reporter=reporter,
    )  # fmt: skip


def _row(variant: str, runs: Sequence[Path]) -> Row:
    summaries = [json.loads((run / SUMMARY).read_text()) for run in runs]
    first = summaries[0]
    before, after = first["train_form"], first["deployed_form"]
    error = max(summary["error"]["float64"] for summary in summaries)
    same = sum(summary["same_answers"] for summary in summaries)
    cells = {
        "parameters": f"{before['parameters'] / 1e3:.1f} k -> {after['parameters'] / 1e3:.1f} k",
        "multiply-adds": f"{before['macs'] / 1e6:.2f} M -> {after['macs'] / 1e6:.2f} M",
        "same answers": f"{same} of {sum(summary['answers'] for summary in summaries)}",
        "float64 error": f"{error:.1e}",
    }
    return Row(variant, tuple(_last_judgement(run) for run in runs), cells)


def _last_judgement(run: Path) -> float:
    records = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    return float(next(r for r in reversed(records) if r["kind"] == "epoch")["val_top1"])


def _report(chosen: Study, rows: tuple[Row, ...], folder: Path, name: str) -> Report:
    return Report(f"{chosen.title} ({chosen.source})", "top-1", rows, folder / f"{name}.md")


def _manifold(folder: Path, seeds: Sequence[int]) -> Report:
    rows: list[Row] = []
    for dimension, found in losses(seeds).items():
        cells = {
            "by the pseudo-inverse": f"{mean(one.inverse for one in found):.2%}",
            "points that collapse": f"{mean(one.collapsed for one in found):.2%}",
        }
        rows.append(Row(str(dimension), tuple(one.linear for one in found), cells))
    title = "How much of a spiral does a ReLU lose? (MobileNetV2, arXiv:1801.04381, figure 1)"
    return Report(title, "lost by the best linear map", tuple(rows), folder / f"{MANIFOLD}.md")


def _write(report: Report, folder: Path, name: str) -> Report:
    folder.mkdir(parents=True, exist_ok=True)
    columns = ["", report.unit, *report.rows[0].cells]
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for row in report.rows:
        lines.append(f"| {' | '.join([row.name, _cell(row), *row.cells.values()])} |")
    count = len(report.rows[0].values)
    text = "\n".join([report.title, "", *lines, "", f"Mean ± standard deviation of {count} seeds."])
    with atomic_path(report.path) as temporary:
        temporary.write_text(text + "\n")
    with atomic_path(folder / f"{name}.json") as temporary:
        temporary.write_text(json.dumps({row.name: row.values for row in report.rows}, indent=2))
    _plot(report, folder / f"{name}.svg")
    return report


def _plot(report: Report, path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "the plot of a study needs matplotlib: run pip install 'refold[train]'"
        ) from error
    names = [row.name for row in report.rows]
    figure = Figure(figsize=(7, 0.45 * len(names) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    places = list(range(len(names)))[::-1]
    for place, row in zip(places, report.rows, strict=True):
        values = [100 * value for value in row.values]
        axes.plot(values, [place] * len(values), "o", color="0.65", markersize=4)
        axes.errorbar(mean(values), place, xerr=100 * row.spread, fmt="D", color="C0", capsize=3)
    axes.set_yticks(places, names)
    axes.set_xlabel(f"{report.unit}, % (each seed, mean and standard deviation)")
    axes.grid(axis="x", alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, metadata={"Date": None})
