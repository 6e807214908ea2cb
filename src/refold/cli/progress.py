"""Show a training run: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn

from refold.cli.console import count, err, line, note
from refold.training import Progress as Place
from refold.training import Reporter, RunPlan

QUIET_SECONDS = 30.0  # between the lines of an epoch where there is no terminal
_JUDGEMENTS = {"val_top1": "top-1", "val_miou": "mIoU", "val_verification": "verification"}


def _begun(plan: RunPlan) -> None:
    shape = "x".join(map(str, plan.image))
    note(
        f"{plan.model}, {count(plan.parameters)} parameters, on {plan.processes} x {plan.device}; "
        f"{plan.data}: {plan.images} training images of {plan.classes} classes, {plan.judged} "
        f"for validation, at {shape}"
    )
    epochs, steps, images = (
        f"{number} {noun}{'' if number == 1 else 's'}"
        for number, noun in ((plan.epochs, "epoch"), (plan.steps, "step"), (plan.batch, "image"))
    )
    note(f"{epochs} of {steps} of {images}")
    if plan.resumed is not None:
        note(f"continues after step {plan.resumed}")


def _epoch_line(record: Mapping[str, Any], epochs: int) -> str:
    judged = ", ".join(
        f"{title} {record[name]:.2%}" for name, title in _JUDGEMENTS.items() if name in record
    )
    return (
        f"epoch {record['epoch']}/{epochs}: loss {record['train_loss']:.4f}, accuracy "
        f"{record['train_accuracy']:.2%}; validation: {judged} (best {record['best']:.2%}); "
        f"{record['images_per_second']:.0f} images/s"
    )


def duration(seconds: float) -> str:
    """Shorten a number of seconds.

    >>> duration(75), duration(3700), duration(200_000)
    ('1:15', '1:01:40', '2 d 7:33:20')
    """
    whole = round(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    clock = f"{hours}:{minutes:02}" if whole >= 3600 else f"{minutes}"
    return (f"{days} d " if days else "") + f"{clock}:{whole % 60:02}"


def make_reporter() -> Reporter:
    """Return what shows a run on the standard error of this moment."""
    return RichReporter() if sys.stderr.isatty() else LineReporter()


class LineReporter(Reporter):
    """A line an epoch, and one from time to time within it."""

    def __init__(self) -> None:
        self._epochs, self._said = 0, time.monotonic()

    def begin(self, plan: RunPlan) -> None:
        """Announce the run."""
        self._epochs, self._said = plan.epochs, time.monotonic()
        _begun(plan)

    def step(self, progress: Place) -> None:
        """Report progress, at most once every `QUIET_SECONDS`."""
        if time.monotonic() - self._said < QUIET_SECONDS:
            return
        self._said = time.monotonic()
        note(
            f"epoch {progress.epoch}/{progress.epochs}, step {progress.step}/{progress.steps}: "
            f"loss {progress.loss:.4f}, accuracy {progress.accuracy:.2%}, "
            f"{progress.speed:.0f} images/s, {duration(progress.left)} left"
        )

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Report the epoch."""
        self._said = time.monotonic()
        note(_epoch_line(record, self._epochs))

    def note(self, text: str) -> None:
        """Print the remark."""
        note(text)


class RichReporter(Reporter):
    """A live line with a bar, and a line that stays for each epoch."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("loss {task.fields[loss]:.4f}  accuracy {task.fields[accuracy]:.2%}"),
            TextColumn("{task.fields[speed]:.0f} images/s  {task.fields[left]} left"),
            console=err(),
            transient=True,
        )
        self._task: TaskID | None = None
        self._epochs = 0

    def begin(self, plan: RunPlan) -> None:
        """Announce the run, and show the bar."""
        self._epochs = plan.epochs
        _begun(plan)
        self._task = self._bar.add_task(
            "", total=plan.steps, epoch="1", loss=0.0, accuracy=0.0, speed=0.0, left="?"
        )
        self._bar.start()

    def step(self, progress: Place) -> None:
        """Move the bar."""
        if self._task is None:
            return
        self._bar.update(
            self._task, completed=progress.step, epoch=f"{progress.epoch}/{progress.epochs}",
            loss=progress.loss, accuracy=progress.accuracy, speed=progress.speed,
            left=duration(progress.left),
        )  # fmt: skip

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Leave a line for the epoch."""
        self._bar.console.print(line(_epoch_line(record, self._epochs)))

    def note(self, text: str) -> None:
        """Leave a line."""
        self._bar.console.print(line(text))

    def end(self) -> None:
        """Remove the bar."""
        self._bar.stop()
        if self._task is not None:  # a study's next run has a bar of its own
            self._bar.remove_task(self._task)
            self._task = None
