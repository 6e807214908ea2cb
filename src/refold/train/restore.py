"""The network of a run, in the form that trains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from refold.errors import InputError
from refold.train.cookbook import check_recipe
from refold.train.data import open_data
from refold.train.folder import CONFIG, RunFolder
from refold.train.saves import LAST, Saves

if TYPE_CHECKING:
    from refold.train.recipe import Recipe


def network_of(
    run: str | Path, pointer: str | None = LAST, *, model: nn.Module | None = None
) -> nn.Module:
    """Return the network of a run, with its branches, in evaluation mode.

    Args:
        run: its folder.
        pointer: "last" or "best" for the weights of such a checkpoint; None as it started.
        model: the network that was given to the run, where one was; it is changed.

    Raises:
        InputError: when there is no such run, or its network was given and is not, or the other way
            round.
        CheckpointError: when the checkpoint is missing or damaged.
    """
    from refold.train.network import build_network

    folder = RunFolder(Path(run))
    recipe, place = begun_with(folder, model)
    network = build_network(recipe, open_data(place, recipe.task), model)
    if pointer is None:
        return network.eval()
    snapshot = Saves(folder.path).read(pointer)
    if snapshot is None:
        raise InputError(f"{folder.path} has no checkpoint {pointer!r}: its run has just begun")
    network.load_state_dict(snapshot.network)
    return network.eval()


def begun_with(folder: RunFolder, given: nn.Module | None) -> tuple[Recipe, str]:
    """Return the recipe and the place of the images that a run was begun with.

    Args:
        folder: of the run.
        given: the network that is given to the run now, if there is one.

    Raises:
        InputError: when the folder holds no run, or its network came from elsewhere.
    """
    config = folder.config()
    place = str(folder.path / CONFIG)
    if set(config) != {"data", "given_model", "recipe"}:
        raise InputError(f"{place} is not what a run wrote: it must have data and recipe")
    if bool(config["given_model"]) != (given is not None):
        raise InputError(
            f"{folder.path} was begun with a network "
            + ("of yours: give it again" if config["given_model"] else "by name: give none")
        )
    return check_recipe(cast("dict[str, Any]", config["recipe"]), place), str(config["data"])
