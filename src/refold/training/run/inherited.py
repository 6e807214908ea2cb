"""How images are prepared for weights that come from a run, where nobody says how."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refold.errors import RefoldError
from refold.exporting import described
from refold.files import is_file
from refold.sources.runs import run_at
from refold.training.loop.run_folder import RunFolder
from refold.training.run.about import about_run
from refold.training.run.begun import read_begun

if TYPE_CHECKING:
    from refold.training.recipes.recipe import Recipe

_COLOURS = 3
INHERITED = ("size", "mean", "std")
"""The keys of `augment` that are taken over."""


def inherited(recipe: Recipe, *places: str | None) -> dict[str, Any]:
    """Return what a recipe leaves open of the images and a run's own preparation says.

    Args:
        recipe: whose `augment` may have no size, mean and std.
        places: where the weights come from: the folders of runs, files that they deployed, and
            names that say nothing of images.

    Returns:
        Values by dotted key of a recipe.
    """
    steps = next(filter(None, map(_preparation, places)), {})
    channels, *sides = steps.get("input", [0])
    found = {"size": sides[0]} if len(set(sides)) == 1 else {}
    if channels == _COLOURS:  # of other images the data know their own
        found |= {key: steps[key] for key in ("mean", "std")}
    return {
        f"augment.{key}": found[key]
        for key in INHERITED
        if key in found and getattr(recipe.augment, key) is None
    }


def _preparation(place: str | None) -> Mapping[str, Any]:
    """Return how the images of a run are prepared; nothing of what is none, or cannot be read."""
    try:
        if place and (run := run_at(place)):
            folder = RunFolder(run[0])
            return about_run(folder, read_begun(folder)).get("preprocessing", {})
        if place and place.endswith(".safetensors") and is_file(place):
            return described(Path(place)).get("preprocessing", {})
    except RefoldError:  # said where the weights are read
        pass
    return {}
