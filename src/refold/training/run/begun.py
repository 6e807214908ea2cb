"""What a run was started with, as its folder holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from refold.errors import InputError
from refold.training.loop.run_folder import CONFIG, PRUNED, RunFolder
from refold.training.recipes.cookbook import changed, check_recipe

if TYPE_CHECKING:
    from refold.training.recipes.recipe import Recipe


@dataclass(frozen=True)
class Begun:
    """What a run was started with, as its `config.yaml` holds it.

    Args:
        recipe: how it trains.
        asked: the recipe that was asked for, where there were too few images for its batch.
        place: of the images.
        given: whether the network was given, and not built from its name.
    """

    recipe: Recipe
    asked: Recipe
    place: str
    given: bool

    def config(self) -> dict[str, Any]:
        """Return it as plain values."""
        used, asked = (one.model_dump(mode="json") for one in (self.recipe, self.asked))
        plain = {"data": self.place, "given_model": self.given, "recipe": used}
        if asked != used:
            plain["asked"] = {
                "batch_size": asked["batch_size"], "optimizer.lr": asked["optimizer"]["lr"]
            }  # fmt: skip
        return plain


def begun_with(folder: RunFolder, given: nn.Module | None) -> Begun:
    """Return what a run was started with.

    Args:
        folder: of the run.
        given: the network that is given to the run now, if there is one.

    Raises:
        InputError: when the folder holds no run, or its network came from elsewhere.
    """
    begun = read_begun(folder)
    if begun.given != (given is not None):
        raise InputError(
            f"{folder.path} was started with a network "
            + ("of yours: give it again" if begun.given else "by name: give none")
        )
    return begun


def read_begun(folder: RunFolder) -> Begun:
    """Return what a run was started with, whoever asks.

    Raises:
        InputError: when the folder holds no run.
    """
    config = folder.config()
    place = str(folder.path / CONFIG)
    if set(config) - {"asked"} != {"data", "given_model", "recipe"}:
        raise InputError(f"{place} is not what a run wrote: it must have data and recipe")
    values = _here(folder, cast("dict[str, Any]", config["recipe"]))
    before = cast("Mapping[str, Any]", config.get("asked", {}))
    recipe, asked = (check_recipe(one, place) for one in (values, changed(values, before)))
    return Begun(recipe, asked, str(config["data"]), bool(config["given_model"]))


def _here(folder: RunFolder, recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe whose network is in the folder itself with the place that has now."""
    own = folder.path / PRUNED
    if Path(str(recipe.get("model"))).name == PRUNED and own.is_file():
        return {**recipe, "model": str(own.absolute())}
    return recipe
