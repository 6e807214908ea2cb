"""Run a comparison of the articles: several seeds a variant, one table, one plot.

A study that was stopped continues where it left off: finished runs are only read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from refold.errors import InputError, require_kind
from refold.files import atomic_path, require_named, write_json
from refold.training.loop.progress import Reporter
from refold.training.studies.catalogue import MANIFOLD, study_of
from refold.training.studies.manifold import losses
from refold.training.studies.plots import plot
from refold.training.studies.report import Report, Row, row_of
from refold.training.studies.runs import Job, require_same_settings, settle, wanted


def study(
    name: str,
    output: str | Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    data: str | Path | None = None,
    changes: Mapping[str, Any] | None = None,
    only: Sequence[str] = (),
    jobs: int = 1,
    reporter: Reporter | None = None,
) -> Report:
    """Run a comparison, or what is left of it, and write its table and its plot.

    The judgement is that of the last epoch, so that no variant gains by a choice on test images.

    Args:
        name: of `refold.training.STUDIES`, or "manifold".
        output: a folder, for this study alone.
        seeds: one run each.
        data: the images; the digits where None.
        changes: to the recipe of all variants, by dotted key.
        only: names of variants; all where empty.
        jobs: runs at a time, each with its share of the processor's cores.
        reporter: receives progress.

    Raises:
        InputError: when there is no such study or variant, or a number makes no sense.
        TrainingError: when the disk is full. A run that diverges is a row's result, no error.
    """
    require_kind("seeds", seeds, Sequence, "several, such as range(3)")
    if not seeds or jobs < 1:
        raise InputError(f"a study needs a seed and a job at least, got {len(seeds)} and {jobs}")
    require_named("output", output)
    folder = Path(output)
    if name == MANIFOLD:
        return _write(_manifold(folder, seeds), name)
    chosen = study_of(name)
    unknown = set(only) - set(chosen.variants)
    if unknown:
        raise InputError(
            f"{name} has no variant {', '.join(sorted(unknown))}: it has "
            f"{', '.join(chosen.variants)}"
        )
    place = None if data is None else str(data)
    every = [
        Job(name, variant, seed, folder, place, dict(changes or {}))
        for variant in wanted(chosen, only)
        for seed in seeds
    ]
    require_same_settings(every)
    settle(every, jobs, reporter or Reporter())
    rows = [
        row_of(variant, [replace(every[0], variant=variant, seed=seed).run for seed in seeds])
        for variant in chosen.variants
        if not only or variant in only or _is_done(every[0], variant, seeds)
    ]
    title = f"{chosen.title} ({chosen.source})"
    report = Report(title, "top-1", tuple(rows), folder / f"{name}.md", len(seeds), chosen.by_depth)
    return _write(report, name)


def _is_done(like: Job, variant: str, seeds: Sequence[int]) -> bool:
    """Say whether a variant that is not wanted now was run before, by the same settings."""
    jobs = [replace(like, variant=variant, seed=seed) for seed in seeds]
    if not all(job.done for job in jobs):
        return False
    require_same_settings(jobs)
    return True


def _manifold(folder: Path, seeds: Sequence[int]) -> Report:
    rows: list[Row] = []
    for dimension, found in losses(seeds).items():
        cells = {
            "by the pseudo-inverse": f"{mean(one.inverse for one in found):.2%}",
            "points that collapse": f"{mean(one.collapsed for one in found):.2%}",
        }
        rows.append(Row(str(dimension), tuple(one.linear for one in found), cells))
    title = "How much of a spiral does a ReLU lose? (MobileNetV2, arXiv:1801.04381, figure 1)"
    path = folder / f"{MANIFOLD}.md"
    return Report(title, "lost by the best linear map", tuple(rows), path, len(seeds))


def _write(report: Report, name: str) -> Report:
    """Write the table, the numbers and the plot, and return the report."""
    folder = report.path.parent
    folder.mkdir(parents=True, exist_ok=True)
    head, *body = report.table()
    lines = [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body)]
    spoken = f"Mean ± standard deviation of {report.seeds} seeds."
    foot = spoken if report.seeds > 1 else "One seed: a single run says nothing about the spread."
    with atomic_path(report.path) as temporary:
        temporary.write_text(
            "\n".join([report.title, "", *lines, "", foot, "", *report.legend()]) + "\n"
        )
    write_json(folder / f"{name}.json", report.to_dict())
    plot(report, folder / f"{name}.svg")
    return report
