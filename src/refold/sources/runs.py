"""The folder of a training run as a MODEL.

A run is made, and built again, by rooms above this one: they say how with `open_runs_with`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from refold.files import is_file

if TYPE_CHECKING:
    from torch import nn

CONFIG = "config.yaml"
"""What makes a folder a run: the settings that it was started with."""
CHECKPOINTS, BEST, LAST = "checkpoints", "best", "last"
"""The folder of a run's checkpoints, and the two in it that have names."""


class Opened(NamedTuple):
    """The network of a run, in the form that trained.

    Args:
        model: with its weights.
        image: the shape of one.
        about: its classes, and how images are prepared, as files say it.
    """

    model: nn.Module
    image: tuple[int, ...]
    about: Mapping[str, Any]


Opener = Callable[[Path, str | None], Opened]
_openers: list[Opener] = []


def open_runs_with(opener: Opener) -> Opener:
    """Say what opens a run, as a decorator.

    Args:
        opener: is given the folder, and `best` or `last`; None for the best that there is.
    """
    _openers[:] = [opener]
    return opener


def run_at(name: str) -> tuple[Path, str | None] | None:
    """Return the folder of the run that MODEL means, and which checkpoint; None for none.

    Examples:
        >>> run_at("timm:resnet18") is None
        True
    """
    path = Path(name)
    if is_file(path / CONFIG):
        return path, None
    if path.name not in (BEST, LAST):
        return None
    above = path.parent
    run = above.parent if above.name == CHECKPOINTS else above
    return (run, path.name) if is_file(run / CONFIG) else None


def open_run(run: Path, pointer: str | None) -> Opened:
    """Return the network of a run, in evaluation mode.

    Args:
        run: its folder.
        pointer: `best` or `last`; None for the best that there is.

    Raises:
        InputError: when it cannot be built again, or has no checkpoint yet.
        CheckpointError: when its checkpoint is damaged.
    """
    return _openers[0](run, pointer)
