"""What tuning found: the choices, and every trial that led to them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from refold.table import render
from refold.tuning.choices import Choices
from refold.tuning.measuring import Speed


@dataclass(frozen=True)
class Trial:
    """One alternative that was built and timed against the best form so far.

    Args:
        name: what was tried.
        speed: how many times as fast it was; None where it could not run.
        adopted: whether it is the best form now.
        reason: why it was not timed.
    """

    name: str
    speed: Speed | None
    adopted: bool
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Tuning:
    """The fastest form of a network that was found for a runtime.

    Args:
        choices: what makes it.
        runtime: where it was timed.
        network: what tells the structure of the network.
        shapes: of the inputs that were timed.
        machine: where; the figures hold nowhere else.
        trials: every alternative, in order.
        speed: how many times as fast as the unfolded network it is, timed at the end.
        model: the network in this form; None when read from a file.
    """

    choices: Choices
    runtime: str
    network: str
    shapes: tuple[tuple[int, ...], ...]
    machine: str
    trials: tuple[Trial, ...] = ()
    speed: Speed | None = None
    model: nn.Module | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the network as plain data, ready for JSON."""
        return {
            "network": self.network,
            "runtime": self.runtime,
            "shapes": [list(shape) for shape in self.shapes],
            "machine": self.machine,
            "choices": self.choices.to_dict(),
            "speed": self.speed,
            "trials": [trial.to_dict() for trial in self.trials],
        }

    def __str__(self) -> str:
        """Return a table of the trials, then the choices and what they gain."""
        rows = [
            [trial.name, str(trial.speed or trial.reason), "adopted" if trial.adopted else ""]
            for trial in self.trials
        ]
        table = render(["tried", "times as fast", ""], rows) + "\n" if rows else ""
        gain = "not timed" if self.speed is None else f"{self.speed} times the unfolded network"
        return f"{table}{self.runtime}: {self.choices}; {gain}"
