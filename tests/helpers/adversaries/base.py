"""What adversaries are made of: a network with something to fold, and a table to enter it into."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

SIZES = ((2, 3, 6, 5), (1, 3, 7, 8), (3, 3, 4, 4))
Norm = nn.BatchNorm2d


def conv(inputs: int = 3, outputs: int = 4, kernel: int = 3) -> nn.Conv2d:
    """Return a convolution that keeps the size."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


class Two(nn.Module):
    """Two branches, each a layer and its norm, and a head; `run` is the forward under test."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.b1, self.c2, self.b2 = conv(), Norm(4), conv(kernel=1), Norm(4)
        self.head = conv(4, 4, 1)

    def branches(self, x: Tensor) -> Tensor:
        """Return the sum of the branches, which is one convolution."""
        return self.b1(self.c1(x)) + self.b2(self.c2(x))

    def one(self, x: Tensor) -> Tensor:
        """Return the first branch."""
        return self.b1(self.c1(x))

    def two(self, x: Tensor) -> Tensor:
        """Return the second branch."""
        return self.b2(self.c2(x))


class Block(nn.Module):
    """A layer and its norm."""

    def __init__(self, inputs: int = 3, outputs: int = 4) -> None:
        super().__init__()
        self.conv, self.norm = conv(inputs, outputs), Norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Run both."""
        return self.norm(self.conv(x))


Make = Callable[[], nn.Module]
Call = Callable[[nn.Module, Tensor], Any]
World = Callable[[], AbstractContextManager[Any]]


class Table(dict[str, Make]):
    """Adversaries of one kind, by name.

    `calls` holds how those are called that take more than one tensor, `resets` what puts state back
    that lies outside the module, `worlds` the contexts in which those are called besides the usual.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, Call] = {}
        self.resets: dict[str, Callable[[], None]] = {}
        self.worlds: dict[str, tuple[World, ...]] = {}

    def forward(
        self,
        setup: Callable[[Any], Any] = lambda s: None,
        base: type[nn.Module] = Two,
        call: Call | None = None,
        reset: Callable[[], None] | None = None,
        worlds: tuple[World, ...] = (),
        **names: Any,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Enter a network with this forward; `setup` is run on every new one."""

        def enter(run: Callable[..., Any]) -> Callable[..., Any]:
            def make() -> nn.Module:
                made: Any = type(run.__name__, (base,), {"forward": run, **names})()
                setup(made)
                return made

            self.worlds[run.__name__] = worlds
            return self._enter(run.__name__, make, call, reset) and run

        return enter

    def whole(
        self, call: Call | None = None, reset: Callable[[], None] | None = None
    ) -> Callable[[Make], Make]:
        """Enter a function that makes a network."""
        return lambda make: self._enter(make.__name__, make, call, reset)

    def _enter(
        self, name: str, make: Make, call: Call | None, reset: Callable[[], None] | None
    ) -> Make:
        assert name not in self, name
        self[name] = make
        if call is not None:
            self.calls[name] = call
        if reset is not None:
            self.resets[name] = reset
        return make


def give(**parts: Any) -> Any:
    """Return a setup that sets attributes to what functions of the network return."""

    def setup(s: Any) -> None:
        for name, make in parts.items():
            setattr(s, name, make(s))

    return setup


def image(size: tuple[int, ...], seed: int = 1) -> Tensor:
    """Return random numbers in float64."""
    noise = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=noise, dtype=torch.float64)
