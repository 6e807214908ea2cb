"""What whoever uses a network must know of its images; of a finished run it is in its summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from refold.errors import InputError
from refold.exporting import without_folders
from refold.sources.runs import run_at
from refold.training.data.augment import preprocessing
from refold.training.data.datasets import Data, open_data
from refold.training.data.sources import PixelSource
from refold.training.loop.run_folder import SUMMARY, RunFolder
from refold.training.run.begun import Begun, read_begun

if TYPE_CHECKING:
    from refold.training.recipes.recipe import Recipe


def about_of(recipe: Recipe, data: Data) -> dict[str, Any]:
    """Return the classes of a network, and how images are prepared for it."""
    named = {} if recipe.task == "embed" else {"classes": list(data.classes)}
    return {**named, "preprocessing": preprocessing(recipe.augment, data)}


def about_run(folder: RunFolder, begun: Begun) -> dict[str, Any]:
    """Return the same of the network of a run, and its name and task.

    Raises:
        InputError: when it has not finished, and its images are not there.
    """
    told = _told(folder) or about_of(begun.recipe, known_data(folder, begun))
    named = {"model": without_folders(begun.recipe.model), "task": begun.recipe.task}
    return named | {key: told[key] for key in ("classes", "preprocessing") if key in told}


def about_at(place: str | Path) -> dict[str, Any]:
    """Return the same of what lies in the folder of a run; nothing of another place.

    Nor of a run that has not finished, and whose images are not there.

    Raises:
        InputError: when what it was started with cannot be read.
    """
    found = run_at(str(place))
    if found is None:
        return {}
    folder = RunFolder(found[0])
    begun = read_begun(folder)
    try:
        return about_run(folder, begun)
    except InputError:
        return {}


def known_data(folder: RunFolder, begun: Begun) -> Data:
    """Return the images of a run; of a finished one no images, but what its summary says of them.

    Raises:
        InputError: when it has not finished, and its images are not there.
    """
    told = _told(folder)
    if told is None:
        return open_data(begun.place, begun.recipe.task)
    channels, side, _ = told["preprocessing"]["input"]
    none = PixelSource(torch.zeros(0, channels, side, side, dtype=torch.uint8), (), begun.place)
    return Data(none, none, tuple(told.get("classes", ())), channels, side, "folder")


def _told(folder: RunFolder) -> dict[str, Any] | None:
    """Return the summary of a finished run; None where there is none that can be used."""
    try:
        told = json.loads((folder.path / SUMMARY).read_text())
        channels, side, _ = told["preprocessing"]["input"]
        return told if min(channels, side) > 0 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
