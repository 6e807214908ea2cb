"""The plot of benchmarks: a group of bars for each table, a bar for each model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from refold.bench.table import BenchmarkTable
from refold.errors import InputError, MissingDependencyError
from refold.files import atomic_path


def plot(tables: Sequence[BenchmarkTable], path: Path) -> None:
    """Draw the medians of tables beside each other, with their quartiles.

    Args:
        tables: of the same models and runtimes, on inputs of other shapes.
        path: of the file; its suffix says the format: .svg, .png, .pdf.

    Raises:
        InputError: when no model has figures, or the format is unknown.
        MissingDependencyError: when matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "--plot needs matplotlib: run pip install 'refold[train]'"
        ) from error
    measured = [(table, row) for table in tables for row in table.rows if row.milliseconds]
    runtimes = list(dict.fromkeys(row.runtime for _, row in measured))
    if not runtimes:
        raise InputError("no model has figures to plot")
    figure = Figure(figsize=(2 + 1.6 * len(tables) * len(runtimes), 4), layout="constrained")
    if path.suffix.lower().lstrip(".") not in figure.canvas.get_supported_filetypes():
        raise InputError(f"{path} is not a picture that can be drawn: end it in .svg, .png or .pdf")
    models = list(dict.fromkeys(row.model for _, row in measured))
    width = 0.8 / len(models)
    axes = figure.add_subplot()
    places = [(runtime, table) for runtime in runtimes for table in tables]
    for number, model in enumerate(models):
        rows = [(at, r) for at, (runtime, table) in enumerate(places) for r in table.rows
                if r.runtime == runtime and r.model == model]  # fmt: skip
        times = [(at, r.milliseconds) for at, r in rows if r.milliseconds]
        axes.bar(
            [at + (number - (len(models) - 1) / 2) * width for at, _ in times],
            [time.median for _, time in times],
            width,
            yerr=[[t.median - t.low for _, t in times], [t.high - t.median for _, t in times]],
            label=model,
            capsize=2,
        )
    axes.set_xticks(range(len(places)), [_title(*place) for place in places])
    axes.set_ylabel("ms a call (median and quartiles)")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    # Without the salt and the date the same figures would give another file each time.
    with rc_context({"svg.hashsalt": "refold"}), atomic_path(path) as temporary:
        figure.savefig(temporary, metadata={"Date": None} if path.suffix == ".svg" else None)


def _title(runtime: str, table: BenchmarkTable) -> str:
    return "\n".join([runtime, *("x".join(map(str, shape)) for shape in table.shapes)])
