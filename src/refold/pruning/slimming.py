"""Train for pruning: an L1 penalty on norm scales or on explicit masks pushes channels to zero."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from refold.errors import InputError
from refold.ranked import CONVS

Target = Literal["norms", "masks"]


def slimming_penalty(model: nn.Module, on: Target = "norms") -> Tensor:
    """Return the sum of the absolute scales of all channels, to be added to a loss.

    Its gradient is the sign of every scale: `loss + 1e-4 * slimming_penalty(model)` is network
    slimming.

    Args:
        model: the network in training.
        on: `"norms"`, the scales of batch norms; `"masks"`, the layers of `channel_mask`.

    Raises:
        InputError: when the network has none of them.

    Examples:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), channel_mask(4))
        >>> _ = net[1].weight.data.copy_(torch.tensor([1.0, -2.0, 0.0, 0.5]))
        >>> slimming_penalty(net).item(), slimming_penalty(net, "masks").item()
        (3.5, 4.0)

    Source: network slimming, arXiv:1708.06519, equation 1; masks, arXiv:2111.00687.
    """
    scales = _scales(model, on)
    if not scales:
        raise InputError(f"this network has no {on} with scales to penalise")
    return torch.stack([scale.abs().sum() for scale in scales]).sum()


def channel_mask(channels: int, rank: int = 2) -> nn.Module:
    """Return a trainable scale per channel, 1 at first, as a depthwise 1×1 convolution.

    Put one where channels shall compete: behind a norm, behind the addition of a residual, or on
    its shortcut. Removing residuals folds it away, whatever its sign.

    Args:
        channels: of the map.
        rank: its spatial axes.

    Examples:
        >>> channel_mask(2)(torch.ones(1, 2, 1, 1)).flatten().tolist()
        [1.0, 1.0]

    Source: RMNet's masks, arXiv:2111.00687.
    """
    layer = CONVS[rank](channels, channels, 1, groups=channels, bias=False)
    nn.init.ones_(layer.weight)
    return layer


def clear_masks(model: nn.Module, threshold: float) -> int:
    """Set masks of at most `threshold` to 0, in place, gradients too; return how many are off.

    Call it after `loss.backward()` and before the optimizer's step, so that what is off stays off.

    Args:
        model: the network in training.
        threshold: the largest absolute value that counts as off.

    Examples:
        >>> mask = channel_mask(3)
        >>> _ = mask.weight.data.copy_(torch.tensor([0.5, -0.01, 0.0]).reshape(3, 1, 1, 1))
        >>> clear_masks(mask, 0.02)
        2
    """
    count = 0
    with torch.no_grad():
        for scale in _scales(model, "masks"):
            off = scale.abs() <= threshold
            scale[off] = 0
            if scale.grad is not None:
                scale.grad[off] = 0
            count += int(off.sum())
    return count


def _scales(model: nn.Module, on: Target) -> list[Tensor]:
    if on == "norms":
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        return [norm.weight for norm in norms if norm.affine]
    if on == "masks":
        convs: list[Any] = [m for m in model.modules() if isinstance(m, tuple(CONVS.values()))]
        return [conv.weight for conv in convs if _masks(conv)]
    raise InputError(f'on must be "norms" or "masks", got {on!r}')


def _masks(conv: Any) -> bool:
    """Say whether a convolution is a scale per channel and nothing else."""
    plain = set(conv.kernel_size) == set(conv.stride) == {1} and not any(conv.padding)
    return plain and conv.groups == conv.in_channels == conv.out_channels and conv.bias is None
