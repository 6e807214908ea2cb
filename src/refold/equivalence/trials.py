"""The inputs that a proof of equality tries, made from one example."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from refold.equivalence.copies import cast_inputs
from refold.inputs import Arguments, tensors

_LARGE = 30.0  # far outside the range of normalised images: saturates clamps and activations
_PLACES = ("corner", "border", "centre", "far corner")


def trial_inputs(example: Arguments) -> Iterator[tuple[str, Arguments]]:
    """Yield named float64 inputs: the example, random, constant and impulse ones of its shapes.

    Constants show wrong biases and borders, impulses show single kernel taps. Tensors that are
    not floating-point (indices, masks) stay as the example has them in every trial.
    """
    wide = cast_inputs(example, torch.float64)
    yield "example", wide
    if not any(tensor.is_floating_point() for tensor in tensors(wide)):
        return
    noise = torch.Generator().manual_seed(0)

    def random(tensor: Tensor) -> Tensor:
        drawn = torch.randn(tensor.shape, generator=noise, dtype=torch.float64)
        return drawn.to(tensor.device)

    yield "random", _each(wide, random)
    yield "large random", _each(wide, lambda tensor: _LARGE * random(tensor))
    yield "ones", _each(wide, torch.ones_like)
    yield "zeros", _each(wide, torch.zeros_like)
    for place in _PLACES:
        yield f"impulse at {place}", _each(wide, lambda tensor, at=place: _impulse(tensor, at))


def _each(inputs: Arguments, make: Callable[[Tensor], Tensor]) -> Arguments:
    def made(tensor: Tensor) -> Tensor:
        return make(tensor) if tensor.is_floating_point() else tensor

    return pytree.tree_map_only(Tensor, made, inputs)


def _impulse(tensor: Tensor, place: str) -> Tensor:
    """Return zeros with a single 1 per sample, in another channel for every place and sample."""
    impulse = torch.zeros_like(tensor)
    if tensor.numel() == 0:
        return impulse
    if tensor.ndim < 3:  # (N, features): the features are the places
        samples, channels, sizes = tensor.shape[:1], (), tensor.shape[1:]
    else:  # (N, C, *spatial)
        samples, channels, sizes = tensor.shape[:1], tensor.shape[1:2], tensor.shape[2:]
    position = _position(place, tuple(sizes))
    for sample in range(samples[0] if samples else 1):
        channel = tuple((sample + _PLACES.index(place)) % count for count in channels)
        impulse[(sample,) * len(samples) + channel + position] = 1.0
    return impulse


def _position(place: str, sizes: tuple[int, ...]) -> tuple[int, ...]:
    if place == "corner":
        return (0,) * len(sizes)
    if place == "far corner":
        return tuple(size - 1 for size in sizes)
    middle = tuple(size // 2 for size in sizes)
    return (0, *middle[1:]) if place == "border" and sizes else middle
