"""Prune: choose channels by importance, silence them, and drop what is dead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn

from refold.account import Account
from refold.errors import RefusedError
from refold.graph import Fold, Kept, fold_model, submodule
from refold.inputs import required
from refold.pruning.choice import Floor, check_amount, choose
from refold.pruning.dead_channels import dropping
from refold.pruning.layers import Importance, find_layers, worth
from refold.residuals import removal
from refold.workload import Workload, measure


@dataclass(frozen=True)
class Slimmed(Fold):
    """One layer that lost channels.

    Args:
        before: its channels in the plain network.
        after: its channels now.
    """

    before: int = 0
    after: int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class Pruning(Account):
    """A pruned network, norms folded, and what that took.

    `steps` are the layers that lost channels (a chosen channel takes with it those that only hand
    it on, and those that nobody reads any more); `kept` are the layers that cannot lose any, and
    the residuals that stay. `cost_before` is that of the folded network as it was given.

    Args:
        masked: the same function with every channel still there: the plain network, weights and
            biases of the chosen channels 0.
        silenced: the channels that were chosen, by layer of the plain network.
        cost_plain: before pruning, with residuals removed where that was asked for.
    """

    steps: tuple[Slimmed, ...]
    masked: nn.Module = field(repr=False)
    silenced: dict[str, list[int]]
    cost_plain: Workload

    @property
    def dropped(self) -> tuple[Slimmed, ...]:
        """The same as `steps`."""
        return self.steps


def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    ratio: float | None = None,
    threshold: float | None = None,
    importance: Importance = "bn",
    floor: Floor = 1,
    remove_residuals: bool = False,
) -> nn.Module:
    """Return the network, norms folded, without its least important channels.

    A channel that goes is silenced before its activation: weights and bias 0, norm scale and shift
    included. The result equals the silenced network. Channels that a sum ties together stay; with
    `remove_residuals` there is no sum left, and every channel goes by itself.

    Args:
        model: any module in eval mode, norms not yet folded; it stays as it is.
        example_inputs: a tensor, a tuple or list of arguments, or a mapping of them by name.
        ratio: the share of the channels that may go; either this or `threshold`.
        threshold: channels of at most this importance go.
        importance: `"bn"`, the scale of the norm that made a channel (for the sum of a removed
            residual, the root of the summed squares); `"l1"`, the L1 norm of its folded filter
            over the mean of its layer; or a function of a `refold.pruning.Layer` that returns a
            number per channel.
        floor: how many (int) or which share (float) of the channels every layer keeps at least; a
            dict gives it by layer. A layer always keeps one.
        remove_residuals: write residuals as plain chains first; those that cannot be stay.

    Raises:
        RefusedError: when the model is in training mode, or no channel of it can go.
        InputError: when an argument is invalid, or the model cannot run on the example.

    Exact when:
        always: the result is the silenced network, at the borders too. How good that is, is for
        training to say.

    Examples:
        >>> layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)]
        >>> net = nn.Sequential(*layers).eval()
        >>> _ = net[1].weight.data.copy_(torch.tensor([0.1, -2.0, 0.3, -0.2]))
        >>> prune(net, torch.zeros(1, 1, 9, 9), ratio=0.5)[0]
        Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1))

    Source: network slimming, arXiv:1708.06519; with residuals removed, arXiv:2111.00687.
    """
    return pruning(
        model,
        example_inputs,
        ratio=ratio,
        threshold=threshold,
        importance=importance,
        floor=floor,
        remove_residuals=remove_residuals,
    ).model


def pruning(
    model: nn.Module,
    example_inputs: Any,
    *,
    ratio: float | None = None,
    threshold: float | None = None,
    importance: Importance = "bn",
    floor: Floor = 1,
    remove_residuals: bool = False,
) -> Pruning:
    """Return the pruned network with an account of what went; the arguments are those of `prune`.

    Raises:
        RefusedError: when the model is in training mode, or no channel of it can go.
        InputError: when an argument is invalid, or the model cannot run on the example.
    """
    check_amount(ratio, threshold)
    inputs = required(model, example_inputs)
    plain, stays, before = _plain(model, inputs, remove_residuals)
    layers, kept = find_layers(plain, inputs)
    if not layers:
        reasons = "; ".join(f"{item.where}: {item.reason}" for item in kept) or "it has no layer"
        raise RefusedError(f"no channel of this network can be dropped: {reasons}")
    values = worth(layers, importance, model, plain, inputs)
    silenced = choose(layers, values, ratio=ratio, threshold=threshold, floor=floor)
    cost_plain = measure(plain, inputs)
    silence(plain, silenced)
    done = dropping(plain, inputs)
    return Pruning(
        model=done.model,
        steps=tuple(_slimmed(plain, done.model)),
        kept=(*stays, *kept, *done.kept),
        cost_before=before or cost_plain,
        cost_after=done.cost_after,
        done="narrowed",
        masked=plain,
        silenced=silenced,
        cost_plain=cost_plain,
    )


def _plain(
    model: nn.Module, example_inputs: Any, remove_residuals: bool
) -> tuple[nn.Module, tuple[Kept, ...], Workload | None]:
    if not remove_residuals:
        return fold_model(model, example_inputs).model, (), None
    done = removal(model, example_inputs)
    return done.model, done.kept, done.cost_before


def silence(plain: nn.Module, channels: dict[str, list[int]]) -> None:
    """Set weights and biases of some channels to 0, in place."""
    with torch.no_grad():
        for path, rows in channels.items():
            layer = cast(nn.Conv2d, submodule(plain, path))
            layer.weight[rows] = 0
            if layer.bias is not None:
                layer.bias[rows] = 0


def _slimmed(plain: nn.Module, pruned: nn.Module) -> Iterator[Slimmed]:
    """Yield the layers of a network that have fewer channels in its pruned form."""
    left = dict(pruned.named_modules())
    for path, layer in plain.named_modules():
        before, after = _width(layer), _width(left.get(path))
        if before and after and after < before:
            counts = [sum(p.numel() for p in one.parameters()) for one in (layer, left[path])]
            detail = f"{before} -> {after} channels"
            yield Slimmed(path, "prune", detail, counts[0], counts[1], before=before, after=after)


def _width(layer: nn.Module | None) -> int:
    width = getattr(layer, "out_channels", getattr(layer, "out_features", None))
    return width if isinstance(width, int) else 0
