"""The runs of a study: each is done once, in this process or in several in parallel."""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from refold.errors import DivergedError, InputError
from refold.files import write_json
from refold.training.data.datasets import DIGITS
from refold.training.loop.progress import Reporter
from refold.training.loop.run_folder import CONFIG, SUMMARY, RunFolder
from refold.training.recipes.cookbook import load_recipe
from refold.training.run.begun import read_begun
from refold.training.run.recipe_differences import differences, shown
from refold.training.run.restored import network_of
from refold.training.run.run import place_of, train
from refold.training.settings import Habits
from refold.training.studies.catalogue import Study, Variant, study_of
from refold.training.studies.gradients import correlations
from refold.training.studies.images import images_of

DIVERGED, GRADIENTS = "diverged.json", "gradients.json"
_SHOWN = 512  # images that a trained network is shown when it is made into another one


@dataclass(frozen=True)
class Job:
    """One run of a study; plain data, so that another process can do it.

    Args:
        study: its name.
        variant: its name.
        seed: of the run.
        folder: of the study.
        data: the images; the digits where None.
        changes: to the recipe of all variants, by dotted key.
    """

    study: str
    variant: str
    seed: int
    folder: Path
    data: str | None
    changes: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.study}: {self.variant}, seed {self.seed}"

    @property
    def run(self) -> Path:
        """The folder of the run."""
        return self._run_of(self.variant)

    @property
    def source(self) -> Path | None:
        """The folder of the run that this one continues."""
        of = self.chosen.of
        return None if of is None else self._run_of(of)

    @property
    def chosen(self) -> Variant:
        """What the variant is."""
        return study_of(self.study).variants[self.variant]

    @property
    def settings(self) -> dict[str, Any]:
        """What its recipe changes of the digits'."""
        shared = study_of(self.study).shared
        return {**shared, **self.chosen.changes, **self.changes, "seed": self.seed}

    @property
    def done(self) -> bool:
        """Whether the run is finished."""
        by_depth = study_of(self.study).by_depth
        finished = (self.run / SUMMARY).is_file()
        measured = (self.run / GRADIENTS).is_file() or not by_depth
        return (self.run / DIVERGED).is_file() or (finished and measured)

    def _run_of(self, variant: str) -> Path:
        plain = re.sub(r"[^a-zA-Z0-9.]+", "-", variant).strip("-").lower()
        return self.folder / "runs" / plain / f"seed-{self.seed}"


def wanted(study: Study, only: Sequence[str]) -> list[str]:
    """Return the variants to run, those that others start from first."""
    names = list(only or study.variants)
    sources = [study.variants[name].of for name in names]
    ahead = [name for name in study.variants if name in sources]
    return [*ahead, *(name for name in names if name not in ahead)]


def settle(jobs: Sequence[Job], beside: int, reporter: Reporter) -> None:
    """Do runs, or what is left of them.

    Args:
        jobs: the runs; those that start from others come after them.
        beside: how many in parallel, each in a process with its share of the processor's cores.
        reporter: receives progress.
    """
    left = [job for job in jobs if not job.done]
    if beside == 1:
        for job in left:
            reporter.note(str(job))
            _do(job, reporter)
        return
    for stage in (
        [job for job in left if job.source is None],
        [job for job in left if job.source is not None],
    ):
        for number, job in enumerate(_beside(stage, beside), 1):
            reporter.note(f"{job}: done, {number} of {len(stage)}")


def _beside(jobs: Sequence[Job], count: int) -> Iterator[Job]:
    """Do jobs in processes of their own; yield each that is done."""
    if not jobs:
        return
    # Not forked: forking a process that computed with several threads is unsafe.
    context = multiprocessing.get_context("spawn")
    threads = max((os.cpu_count() or 1) // count, 1)
    with ProcessPoolExecutor(
        min(count, len(jobs)),
        mp_context=context,
        initializer=torch.set_num_threads,
        initargs=(threads,),
    ) as pool:
        pending = {pool.submit(_do, job, Reporter()): job for job in jobs}
        try:
            for future in as_completed(pending):
                future.result()
                yield pending[future]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _do(job: Job, reporter: Reporter) -> None:
    """Do a run, or the rest of it; a diverged run is a result as well."""
    if not (job.run / SUMMARY).is_file():
        try:
            _train(job, reporter)
        except DivergedError as error:
            write_json(job.run / DIVERGED, {"message": str(error)})
            reporter.note(f"{job}: {error}")
            return
    if study_of(job.study).by_depth:
        write_json(job.run / GRADIENTS, correlations(job.run))


def _train(job: Job, reporter: Reporter) -> None:
    begun = (job.run / CONFIG).is_file()
    train(
        "digits", output=job.run, data=job.data, model=_start(job), changes=job.settings,
        resume=begun, tracker="none",
        habits=Habits(workers=1), reporter=reporter,
    )  # fmt: skip


def require_same_settings(jobs: Sequence[Job]) -> None:
    """Refuse to go on with a study whose runs so far had other settings.

    Args:
        jobs: all runs that are wanted.

    Raises:
        InputError: when one was begun differently, and the message names it and the settings; or
            when there are no such settings.
    """
    for job in jobs:
        recipe = load_recipe("digits", job.settings)
        if not (job.run / CONFIG).is_file():
            continue
        begun = read_begun(RunFolder(job.run))
        place = place_of(DIGITS if job.data is None else job.data)
        found = differences(begun, recipe)
        if begun.place != place:
            found = [f"--data {place}, but the run was started with {begun.place}", *found]
        if found:
            raise InputError(
                f"the study in {job.folder} was begun with other settings ({job}: {shown(found)}): "
                "repeat them to continue it, or give another folder (-o) for a new one"
            )


def _start(job: Job) -> nn.Module | None:
    """Return the network that a run starts from, where it is that of another run."""
    if job.source is None or job.chosen.shape is None:
        return None
    images = images_of(job.source, _SHOWN, train=True)
    return job.chosen.shape(network_of(job.source), images)
