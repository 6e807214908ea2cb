"""What a run reports while it trains; displaying it is up to others."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RunPlan:
    """What a run is going to do.

    Args:
        model: its name.
        parameters: of the network that trains.
        data: where the images are.
        images: for training.
        judged: for validation.
        classes: how many.
        image: shape of one, (C, H, W).
        epochs: in all.
        steps: of an epoch.
        batch: images of a step, of all processes together.
        processes: that share it.
        device: where they compute.
        resumed: the step that it continues from; None for a new run.
    """

    model: str
    parameters: int
    data: str
    images: int
    judged: int
    classes: int
    image: tuple[int, ...]
    epochs: int
    steps: int
    batch: int
    processes: int
    device: str
    resumed: int | None


@dataclass(frozen=True)
class Progress:
    """Where a run is after a step.

    Args:
        epoch: from 1.
        epochs: in all.
        step: of this epoch, from 1.
        steps: of an epoch.
        loss: mean of the epoch so far.
        accuracy: share of right answers in the epoch so far.
        rate: the learning rate.
        speed: images a second, of all processes.
        left: seconds until the end, at that speed.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float
    rate: float
    speed: float
    left: float


class Clock:
    """How fast the run is, over its last steps."""

    _STEPS = 50

    def __init__(self) -> None:
        self._ticks: deque[tuple[float, int]] = deque([(time.monotonic(), 0)], self._STEPS)

    def tick(self, images: int) -> None:
        """Count the images of a step that is done."""
        self._ticks.append((time.monotonic(), images))

    @property
    def speed(self) -> float:
        """Images a second."""
        ticks = list(self._ticks)
        seconds = ticks[-1][0] - ticks[0][0]
        return sum(images for _, images in ticks[1:]) / seconds if seconds > 0 else 0.0


class Reporter:
    """Receives the events of a run; this one ignores them."""

    def begin(self, plan: RunPlan) -> None:
        """Receive the plan of the run."""

    def step(self, progress: Progress) -> None:
        """Receive a finished step."""

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Receive the record of a finished epoch."""

    def note(self, text: str) -> None:
        """Receive a remark."""

    def end(self) -> None:
        """Learn that training has ended, successfully or not."""
