"""The learning rate over a run: a function of the step alone, so that it needs no state."""

from __future__ import annotations

from math import cos, pi
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refold.training.recipes.recipe import Schedule


def rate(schedule: Schedule, step: int, steps: int) -> float:
    """Return the share of the highest learning rate that a step trains at.

    Args:
        schedule: the course.
        step: from 0.
        steps: of the whole run.

    Examples:
        >>> from refold.training.recipes.recipe import Schedule
        >>> [round(rate(Schedule(), step, 4), 3) for step in range(4)]
        [1.0, 0.854, 0.5, 0.146]
        >>> [rate(Schedule(kind="steps", milestones=(0.5,)), step, 4) for step in range(4)]
        [1.0, 1.0, 0.1, 0.1]
    """
    rising = schedule.warmup * steps
    if step < rising:
        share = 0.0 if schedule.flat else (step + 1) / (rising + 1)
        return schedule.warmup_from + (1 - schedule.warmup_from) * share
    if schedule.kind == "steps":
        return schedule.factor ** sum(step >= stone * steps for stone in schedule.milestones)
    done = (step - rising) / max(steps - rising, 1)
    if schedule.kind == "cosine":
        return schedule.final + (1 - schedule.final) * (1 + cos(pi * done)) / 2
    return (1 - done) ** schedule.power if schedule.kind == "poly" else 1.0
