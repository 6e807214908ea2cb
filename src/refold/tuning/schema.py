"""What a tuning file holds, checked by pydantic."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

_Figures = tuple[float, float, float]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ChoicesEntry(_Strict):
    """The choices; see `refold.tuning.Choices`."""

    folded: bool
    apart: tuple[str, ...]
    grown: tuple[str, ...]
    without_residuals: bool
    channels_last: bool


class TrialEntry(_Strict):
    """One trial; see `refold.tuning.Trial`."""

    name: str
    speed: _Figures | None
    adopted: bool
    reason: str


class TuningFile(_Strict):
    """The whole file."""

    format: Literal[1]
    network: str
    runtime: str
    shapes: tuple[tuple[int, ...], ...]
    machine: str
    choices: ChoicesEntry
    speed: _Figures | None
    trials: tuple[TrialEntry, ...]
