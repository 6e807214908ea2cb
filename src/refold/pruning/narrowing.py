"""The shape of a pruned network, made again from the network that it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from refold.graph import duplicate
from refold.inputs import required
from refold.pruning.channels import plain_form, silence
from refold.pruning.dead_channels import drop_dead_channels


def narrow(
    model: nn.Module,
    example_inputs: Any,
    gone: Mapping[str, Sequence[int]],
    *,
    remove_residuals: bool = False,
) -> nn.Module:
    """Return the folded network without some channels, for the weights of a pruned one.

    Which channels go is said, not chosen, so the weights that the network has now play no part;
    those of the result are made up.

    Args:
        model: any module in eval mode, norms not yet folded; it stays as it is.
        example_inputs: a tensor, a tuple or list of arguments, or a mapping of them by name.
        gone: the channels that go, by layer of the folded network: `Pruning.gone`.
        remove_residuals: whether residuals were written as plain chains first.

    Raises:
        RefusedError: when the model is in training mode.
        InputError: when it cannot run on the example.

    Examples:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
        >>> narrow(net, torch.zeros(1, 1, 9, 9), {"0": [1, 2]})[0]
        Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1))
    """
    inputs = required(model, example_inputs)
    blank = duplicate(model)
    _enliven(blank)
    plain = plain_form(blank, inputs, remove_residuals)[0]
    silence(plain, {path: list(rows) for path, rows in gone.items()})
    return drop_dead_channels(plain, inputs, round_to=1)


def _enliven(model: nn.Module) -> None:
    """Give every tensor numbers of which no channel is dead, and no constant but 0 is left by one.

    A network often starts with norms of scale 0, whose channels would go as well.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            last = name.rpartition(".")[2]
            if not value.is_floating_point():
                continue
            if value.ndim > 1:
                value.copy_(torch.randn(value.shape, generator=generator))
            elif "bias" in last or last == "running_mean":
                value.zero_()
            elif last in ("weight", "running_var") or isinstance(value, nn.Parameter):
                value.fill_(1)
