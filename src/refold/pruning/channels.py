"""Prune: choose channels by importance, silence them, and drop what is dead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from refold.errors import RefusedError
from refold.graph import Kept, fold_model, submodule
from refold.pruning.choice import Floor, check_amount, choose
from refold.pruning.dead_channels import dropping
from refold.pruning.layers import Importance, find_layers, worth
from refold.residuals import removal
from refold.workload import Workload, measure


@dataclass(frozen=True)
class Slimmed:
    """One layer that lost channels.

    Args:
        where: its path.
        before: its channels in the plain network.
        after: its channels now.
    """

    where: str
    before: int
    after: int


@dataclass(frozen=True, eq=False)
class Pruning:
    """A pruned network, and what that took.

    Args:
        model: the network, norms folded.
        masked: the same function with every channel still there: the plain network, weights and
            biases of the chosen channels 0.
        silenced: the channels that were chosen, by layer of the plain network.
        dropped: the layers that lost channels; a chosen channel takes with it those that only
            hand it on, and those that nobody reads any more.
        kept: the layers that cannot lose channels, and what stays of residuals, with the reason.
        cost_before: parameters and multiply-adds of the folded network as it was given.
        cost_plain: the same before pruning: with its residuals removed where that was asked for.
        cost_after: the same of the result.
    """

    model: nn.Module
    masked: nn.Module
    silenced: dict[str, list[int]]
    dropped: tuple[Slimmed, ...]
    kept: tuple[Kept, ...]
    cost_before: Workload
    cost_plain: Workload
    cost_after: Workload

    def summary(self) -> str:
        """Return what went, as lines: the whole, then every layer."""
        lost = sum(layer.before - layer.after for layer in self.dropped)
        text = f"{lost} channels of {len(self.dropped)} layers dropped; "
        lines = [f"{text}{self.cost_before} -> {self.cost_after}"]
        lines += [f"{layer.where}: {layer.before} -> {layer.after}" for layer in self.dropped]
        return "\n".join(lines)


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
        example_inputs: a tensor or a tuple of tensors that the model accepts.
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
        InputError: when an argument makes no sense, or the model cannot run on the example.

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
        InputError: when an argument makes no sense, or the model cannot run on the example.
    """
    check_amount(ratio, threshold)
    plain, stays, before = _plain(model, example_inputs, remove_residuals)
    layers, kept = find_layers(plain, example_inputs)
    if not layers:
        reasons = "; ".join(f"{item.where}: {item.reason}" for item in kept) or "it has no layer"
        raise RefusedError(f"no channel of this network can be dropped: {reasons}")
    values = worth(layers, importance, model, plain, example_inputs)
    silenced = choose(layers, values, ratio=ratio, threshold=threshold, floor=floor)
    cost_plain, widths = measure(plain, example_inputs), _widths(plain)
    silence(plain, silenced)
    done = dropping(plain, example_inputs)
    after = _widths(done.model)
    dropped = tuple(
        Slimmed(path, width, after[path])
        for path, width in widths.items()
        if path in after and after[path] < width
    )
    costs = (before or cost_plain, cost_plain, done.cost_after)
    return Pruning(done.model, plain, silenced, dropped, (*stays, *kept, *done.kept), *costs)


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


def _widths(model: nn.Module) -> dict[str, int]:
    widths: dict[str, int] = {}
    for path, module in model.named_modules():
        width = getattr(module, "out_channels", getattr(module, "out_features", None))
        if isinstance(width, int):
            widths[path] = width
    return widths
