"""The network of a run, in the form that trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from refold.errors import InputError
from refold.training.data.datasets import open_data
from refold.training.loop.run_folder import CONFIG, RunFolder
from refold.training.loop.saves import LAST, Saves
from refold.training.recipes.cookbook import changed, check_recipe

if TYPE_CHECKING:
    from refold.training.recipes.recipe import Recipe


def network_of(
    run: str | Path, pointer: str | None = LAST, *, model: nn.Module | None = None
) -> nn.Module:
    """Return the network of a run, with its branches, in evaluation mode.

    Args:
        run: its folder.
        pointer: "last" or "best" for the weights of such a checkpoint; None as it started.
        model: the network that was given to the run, where one was; it is changed.

    Raises:
        InputError: when there is no such run, or its network was given then and is not now, or the
            other way round.
        CheckpointError: when the checkpoint is missing or damaged.
    """
    from refold.training.run.network import build_network

    folder = RunFolder(Path(run))
    begun = begun_with(folder, model)
    network = build_network(begun.recipe, open_data(begun.place, begun.recipe.task), model)
    if pointer is None:
        return network.eval()
    snapshot = Saves(folder.path).read(pointer)
    if snapshot is None:
        raise InputError(
            f"{folder.path} has no checkpoint {pointer!r}: its run has only just started"
        )
    network.load_state_dict(snapshot.network)
    return network.eval()


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
    config = folder.config()
    place = str(folder.path / CONFIG)
    if set(config) - {"asked"} != {"data", "given_model", "recipe"}:
        raise InputError(f"{place} is not what a run wrote: it must have data and recipe")
    if bool(config["given_model"]) != (given is not None):
        raise InputError(
            f"{folder.path} was started with a network "
            + ("of yours: give it again" if config["given_model"] else "by name: give none")
        )
    values = cast("dict[str, Any]", config["recipe"])
    before = cast("Mapping[str, Any]", config.get("asked", {}))
    recipe, asked = (check_recipe(one, place) for one in (values, changed(values, before)))
    return Begun(recipe, asked, str(config["data"]), given is not None)
