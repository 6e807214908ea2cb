"""A network of somebody's package: how it is built, small and without weights, and called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

Example = dict[str, Any] | tuple[Any, ...]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Guest:
    """One network.

    Args:
        package: the distribution that has it, as its index calls it.
        name: its name in the table.
        build: makes it, with random weights; imports the package.
        example: makes what it is called with, by name or in order.
    """

    package: str
    name: str
    build: Callable[[], nn.Module] = field(repr=False)
    example: Callable[[], Example] = field(repr=False)

    @property
    def label(self) -> str:
        """The name with its package: `transformers:resnet`."""
        return f"{self.package}:{self.name}"

    def model(self) -> nn.Module:
        """Return the network in eval mode and float64; the same weights every time."""
        torch.manual_seed(0)
        return self.build().double().eval()


def values(*shape: int) -> Tensor:
    """Return random numbers of a shape in float64; the same every time."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def pictures(*shape: int) -> Tensor:
    """Return numbers between 0 and 1, as detectors and matchers want them."""
    return values(*shape).sigmoid()


def called(*shape: int, **named: Shape) -> Callable[[], Example]:
    """Return what makes the example: one tensor of a shape, or tensors by name."""
    if named:
        return lambda: {name: values(*size) for name, size in named.items()}
    return lambda: (values(*shape),)


def made(where: str, name: str, *args: Any, **options: Any) -> Callable[[], nn.Module]:
    """Return what imports a class or function and calls it."""
    return lambda: getattr(import_module(where), name)(*args, **options)


def listed(
    package: str, where: str, rows: dict[str, tuple[dict[str, Any], Shape]]
) -> Iterator[Guest]:
    """Yield networks that are all made alike: the name in `where`, its options, a shape."""
    for name, (options, shape) in rows.items():
        yield Guest(package, name, made(where, name, **options), called(*shape))
