"""The network of a recipe, as it starts to train."""

from __future__ import annotations

import copy
import inspect
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from refold.blocks import BranchedBlock
from refold.branches import block_factory, expand, expand_plan
from refold.errors import InputError
from refold.models import create_model
from refold.residuals import removal
from refold.training.data.datasets import Data
from refold.training.recipes.recipe import Recipe
from refold.training.seeds import seeded


class Builder(Protocol):
    """Builds a network from the name in a recipe."""

    def __call__(self, name: str, /, *, num_classes: int, in_chans: int, **options: Any) -> Any:
        """Return the network."""
        ...


def ours(name: str, /, *, num_classes: int, in_chans: int, **options: Any) -> nn.Module:
    """Return a network of `refold.list_models()`."""
    return create_model(name, num_classes=num_classes, in_chans=in_chans, **options)


def build_network(
    recipe: Recipe, data: Data, given: nn.Module | None = None, build: Builder = ours
) -> nn.Module:
    """Return the network of a recipe, with its branches, as it starts to train.

    Args:
        recipe: which network.
        data: the images, which say how many classes and channels.
        given: a network to take as it is; None to build the recipe's.
        build: what builds it.

    Raises:
        InputError: when it cannot be built, or has no convolution that can become a block.
    """
    if given is not None:
        network = given
    else:
        classes = 0 if recipe.task == "embed" else len(data.classes)
        with seeded(recipe.seed, "weights"):
            network = build(
                recipe.model, num_classes=classes, in_chans=data.channels, **recipe.options
            )
    if recipe.block is not None:
        block = chosen_block(recipe.block, recipe.block_options)
        planned = expand_plan(network, block)
        if not planned.steps:
            reasons = "; ".join(f"{item.where}: {item.reason}" for item in planned.kept[:3])
            raise InputError(
                f"no convolution of {recipe.model} can become {recipe.block}: {reasons}"
            )
        with seeded(recipe.seed, "branches"):
            network = expand(network, block, preserve=False)
    _start(network, recipe)
    return network.train()


def chosen_block(name: str, options: dict[str, Any]) -> str | partial[nn.Module]:
    """Return a registered block with options of its own, as `expand` takes it.

    Raises:
        InputError: when there is no such block, or it has no such option.
    """
    if not options:
        return name
    factory = block_factory(name)
    known = inspect.signature(factory).parameters if isinstance(factory, type) else {}
    for option in options:
        if option not in known:
            raise InputError(
                f"block_options.{option}: {name} has no such option; it has {', '.join(known)}"
            )
    return partial(factory, **options)


def check_removable(network: nn.Module, image: tuple[int, ...]) -> None:
    """Check before a long training that every residual can be removed at its end.

    Raises:
        InputError: when one has to.
    """
    fresh = copy.deepcopy(network).cpu().eval()
    kept = removal(fresh, torch.zeros(1, *image)).kept
    if kept:
        reasons = "; ".join(f"{item.where}: {item.reason}" for item in kept[:3])
        raise InputError(
            f"deploy.remove_residuals cannot be done, {len(kept)} additions have to stay: {reasons}"
        )


def _start(network: nn.Module, recipe: Recipe) -> None:
    for module in network.modules():
        if recipe.gamma is not None and isinstance(module, BranchedBlock):
            module.init_gamma(recipe.gamma)
        slim = recipe.slimming
        if slim is None or slim.gamma is None or not isinstance(module, BatchNorm):
            continue
        if module.affine:
            nn.init.constant_(module.weight, slim.gamma)
