"""What a recipe adds to the loss: functions of the network that return one number."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from refold.algebra.norm import norm_affine
from refold.pruning import slimming_penalty
from refold.training.loop.optim import open_repvggs

if TYPE_CHECKING:
    from refold.training.recipes.recipe import Recipe

Penalty = Callable[[nn.Module], Tensor]
"""Given the network, what to add to the loss."""


def penalties_of(recipe: Recipe) -> list[Penalty]:
    """Return the penalties that a recipe asks for."""
    found: list[Penalty] = []
    if recipe.decay.custom_l2:
        found.append(lambda model: recipe.decay.value * 0.5 * kernel_l2(model))
    slimming = recipe.slimming
    if slimming is not None:
        found.append(lambda model: slimming.l1 * slimming_penalty(model))
    return found


def kernel_l2(model: nn.Module) -> Tensor:
    """Return the squares of what the two kernels of each RepVGG block add up to.

    The taps around the centre stand as they are; the centre is that of the folded block, divided by
    the scales so that they do not shrink to please it.

    Source: RepVGG's repository, `get_custom_L2`; Ding et al. 2021, arXiv:2101.03697.
    """
    return _total([_block_l2(block) for block in open_repvggs(model)], model)


def _block_l2(block: Any) -> Tensor:
    wide, narrow = block.rbr_dense.conv.weight, block.rbr_1x1.conv.weight
    # (O, 1, ...) scales of the folded kernels, not to be trained by this
    wide_scale, narrow_scale = (
        _slope(branch.bn).to(wide).view(-1, *(1,) * (wide.ndim - 1))
        for branch in (block.rbr_dense, block.rbr_1x1)
    )
    centre = (..., *(slice(size // 2, size // 2 + 1) for size in wide.shape[2:]))
    around = wide.square().sum() - wide[centre].square().sum()
    joint = wide[centre] * wide_scale + narrow * narrow_scale
    return around + (joint.square() / (wide_scale.square() + narrow_scale.square())).sum()


def _slope(norm: Any) -> Tensor:
    found = norm_affine(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)
    return cast(Tensor, found.scale).detach()


def _total(parts: list[Tensor], model: nn.Module) -> Tensor:
    if parts:
        return torch.stack(parts).sum()
    return next(model.parameters()).new_zeros(())
