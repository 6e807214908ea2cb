"""The layers of a plain network whose channels may go, and what their channels are worth."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from refold.algebra.operator import Conv
from refold.errors import InputError, RefusedError
from refold.graph import Capture, Kept, Lifter, capture_all
from refold.inputs import Arguments
from refold.pruning.scales import norm_scales
from refold.pruning.spans import Span, makers, span_of


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution or linear layer of the folded network, as an importance sees it.

    Args:
        path: where it stands in the folded network.
        weight: its filters, norms folded in, (channels, inputs, *kernel).
        rows: the channels that may go. Not among them are those that hand one input channel on, as
            a removed residual's do: they go with their source.
        scale: the scale of the norm that made each channel, float64; NaN where none did.
    """

    path: str
    weight: Tensor
    rows: Tensor
    scale: Tensor


Importance = Literal["bn", "l1"] | Callable[[Layer], Tensor]
"""`"bn"`: the norm's scale; `"l1"`: the norm of the folded filter over the mean of its layer; or a
function that returns a number for each channel of a layer."""


def find_layers(plain: nn.Module, inputs: Arguments) -> tuple[list[Layer], list[Kept]]:
    """Return the layers of a folded network that can lose channels, and why the others cannot."""
    return layers_of(capture_all(plain, inputs).captures)


def layers_of(captures: Iterable[Capture]) -> tuple[list[Layer], list[Kept]]:
    """Return the layers of folded graphs that can lose channels, and why the others cannot."""
    layers: list[Layer] = []
    kept: list[Kept] = []
    for capture in captures:
        lifter = Lifter.of(capture)
        for maker in makers(lifter):
            path = capture.full(str(maker.node.target))
            try:
                layers.append(_layer(path, span_of(lifter, maker)))
            except RefusedError as error:
                kept.append(Kept(path, str(error)))
    return layers, kept


def _layer(path: str, span: Span) -> Layer:
    count = span.made.out_channels
    free = torch.tensor([span.loses(channel) for channel in range(count)])
    if not bool(free.any()):
        raise RefusedError("its channels would leave a constant, and the next layer pads with 0")
    free &= ~hands_on(span.made).cpu()
    if not bool(free.any()):
        raise RefusedError("all its channels only hand an input channel on")
    scale = torch.full((count,), torch.nan, dtype=torch.float64)
    return Layer(path, span.made.weight.detach(), free.nonzero().flatten(), scale)


def hands_on(op: Conv) -> Tensor:
    """Say of each channel whether it only reads one channel of several, and adds nothing."""
    reads = (op.weight.detach().flatten(2) != 0).any(2) if op.axes else op.weight.detach() != 0
    plain = reads.sum(1) == 1
    if op.bias is not None:
        plain &= op.bias.detach() == 0
    return plain & (op.in_channels > 1)


def worth(
    layers: list[Layer],
    importance: Importance,
    model: nn.Module,
    plain: nn.Module,
    inputs: Arguments,
) -> list[Tensor]:
    """Return the importance of each layer's channels, float64; NaN for one that has to stay.

    Raises:
        InputError: when an importance is unknown or returns something else than a number for every
            channel, or `"bn"` finds no norm.
    """
    if importance == "l1":
        return [filter_norms(layer) for layer in layers]
    if importance != "bn" and not callable(importance):
        raise InputError(
            f'importance must be "bn", "l1" or a function of a layer, got {importance!r}'
        )
    scales = norm_scales(model, plain, inputs, [layer.path for layer in layers])
    told = [Layer(x.path, x.weight, x.rows, scales.get(x.path, x.scale)) for x in layers]
    if callable(importance):
        return [_asked(importance, layer) for layer in told]
    if all(bool(layer.scale[layer.rows].isnan().all()) for layer in told):
        raise InputError(
            'importance="bn" reads the scales of norms, and there are none: give the network '
            'before its norms are folded, or use importance="l1"'
        )
    return [layer.scale for layer in told]


def filter_norms(layer: Layer) -> Tensor:
    """Return the L1 norm of each channel's filter over the mean of its layer, float64."""
    norms = layer.weight.abs().double().flatten(1).sum(1).cpu()
    return norms / norms[layer.rows].mean().clamp_min(torch.finfo(torch.float64).tiny)


def _asked(importance: Callable[[Layer], Tensor], layer: Layer) -> Tensor:
    found = cast(object, importance(layer))
    count = len(layer.weight)
    if not isinstance(found, Tensor) or found.shape != (count,):
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(
            f"{layer.path}: the importance must be a tensor of {count} numbers, got {got}"
        )
    return found.detach().double().cpu()
