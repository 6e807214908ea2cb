"""Drop the channels that compute nothing: a masked network and its pruned form are equal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from refold.graph.dead_channels import DeadChannelPass
from refold.graph.record import Fold, Kept
from refold.graph.rewrite import rewrite
from refold.workload import Rebuilt


@dataclass(frozen=True, eq=False)
class Dropped(Rebuilt):
    """A network without its dead channels.

    Args:
        model: the network.
        folded: the network with them, its norms folded.
        example_inputs: what the costs are counted for.
        dropped: the layers that lost channels.
        kept: the layers that keep a dead channel, each with the reason.
    """

    dropped: tuple[Fold, ...]
    kept: tuple[Kept, ...]


def drop_dead_channels(model: nn.Module, example_inputs: Any) -> nn.Module:
    """Return the same function, norms folded, without channels that are constant or unread.

    A channel is dead when its weights are all zero (a norm with weight and bias 0 makes them so):
    its constant goes into the bias of the layer that reads it. Where that layer pads with zeros and
    the constant is not 0, the channel stays. A layer keeps at least one channel.

    Args:
        model: any module in eval mode; it stays as it is.
        example_inputs: a tensor or a tuple of tensors that the model accepts.

    Raises:
        RefusedError: when the model is in training mode.
        InputError: when it is no module, or cannot run on the example.

    Exact when:
        always, at the borders too; `dropping` says which dead channels stay and why.

    Examples:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
        >>> _ = net[0].weight.data[1:3].zero_()
        >>> drop_dead_channels(net, torch.zeros(1, 1, 9, 9))
        Sequential(
          (0): Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1))
          (1): ReLU()
          (2): Conv2d(2, 2, kernel_size=(3, 3), stride=(1, 1))
        )

    Source: network slimming, arXiv:1708.06519.
    """
    return dropping(model, example_inputs).model


def dropping(model: nn.Module, example_inputs: Any) -> Dropped:
    """Return the network without its dead channels, and an account of them.

    Args:
        model: any module in eval mode; it stays as it is.
        example_inputs: a tensor or a tuple of tensors that the model accepts.

    Raises:
        RefusedError: when the model is in training mode.
        InputError: when it is no module, or cannot run on the example.
    """
    done = rewrite(model, example_inputs, DeadChannelPass)
    dropped = tuple(fold for one in done.passes for fold in one.folds)
    kept = tuple(kept for one in done.passes for kept in one.kept)
    return Dropped(done.model, done.folded, example_inputs, dropped, kept)
