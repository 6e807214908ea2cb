"""Random residual networks: every kind of block that the pass knows, drawn at random and alive.

A network is a stem and three blocks, each with its own kind, width, stride, function and sign of
input. Norms have live statistics and weights of both signs, and values are driven above 6.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

KINDS = (
    "basic", "bottleneck", "grouped", "inverted", "preactivated", "se inside", "se last",
    "depthwise first", "depthwise last", "activated last", "scaled", "subtracted", "old se",
)  # fmt: skip
SHORTCUTS = ("projection", "pooled", "padded", "concatenated", "wide projection")
FUNCTIONS: dict[str, Callable[[int], nn.Module]] = {
    "relu": lambda c: nn.ReLU(inplace=True),
    "relu6": lambda c: nn.ReLU6(),
    "leaky": lambda c: nn.LeakyReLU(0.2),
    "prelu": lambda c: nn.PReLU(c),
    "hardtanh": lambda c: nn.Hardtanh(-0.5, 2.0),
}


def norm(channels: int, rng: Random) -> nn.BatchNorm2d:
    """Return a norm with live statistics, weights of both signs, and outputs well above 6."""
    layer = nn.BatchNorm2d(channels)
    generator = torch.Generator().manual_seed(rng.randrange(1 << 30))

    def draw(low: float, high: float) -> Tensor:
        return torch.rand(channels, generator=generator) * (high - low) + low

    with torch.no_grad():
        layer.running_mean.copy_(draw(-0.5, 0.5))
        layer.running_var.copy_(draw(0.05, 0.5))
        layer.weight.copy_(draw(0.5, 2.0) * torch.where(draw(0, 1) < 0.3, -1.0, 1.0))
        layer.bias.copy_(draw(-1.0, 1.0))
    return layer


def conv(i: int, o: int, k: int, rng: Random, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return a convolution and its norm."""
    bias = rng.random() < 0.3
    return [nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=bias), norm(o, rng)]


class Gate(nn.Module):
    """Squeeze and excite, written as timm writes it, or with views and linear layers."""

    def __init__(self, channels: int, old: bool) -> None:
        super().__init__()
        self.old = old
        layer: Any = nn.Linear if old else (lambda i, o: nn.Conv2d(i, o, 1))
        self.down, self.up = layer(channels, 3), layer(3, channels)
        self.relu, self.sigmoid = nn.ReLU(), nn.Sigmoid() if old else nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        if not self.old:
            return x * self.sigmoid(self.up(self.relu(self.down(x.mean((2, 3), keepdim=True)))))
        n, c, _, _ = x.size()
        y = F.adaptive_avg_pool2d(x, 1).view(n, c)
        y = self.sigmoid(self.up(self.relu(self.down(y)))).view(n, c, 1, 1)
        return x * y.expand_as(x)


class Shortcut(nn.Module):
    """The other side where the shape changes."""

    def __init__(self, kind: str, i: int, o: int, stride: int, rng: Random) -> None:
        super().__init__()
        self.kind, self.more, self.stride = kind, o - i, stride
        size = 3 if kind == "wide projection" else 1
        self.body = nn.Sequential(*conv(i, o, size, rng, 1 if kind == "pooled" else stride))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "padded":
            x = x[:, :, :: self.stride, :: self.stride]
            return F.pad(x, (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))
        if self.kind == "concatenated":
            x = F.avg_pool2d(x, 1, self.stride)
            return torch.cat([x, x.mul(0)], 1) if self.more else x
        if self.kind == "pooled" and self.stride > 1:
            x = F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False)
        return self.body(x)


class Block(nn.Module):
    """One residual of a random kind."""

    def __init__(self, i: int, o: int, stride: int, kind: str, rng: Random) -> None:
        super().__init__()
        self.kind = kind
        act = FUNCTIONS[rng.choice(list(FUNCTIONS))]
        self.after = rng.choice([nn.ReLU(), nn.ReLU6(), nn.Identity(), nn.Identity()])
        shortcut = rng.choice(SHORTCUTS)
        if shortcut == "concatenated" and o not in (i, 2 * i):
            shortcut = "padded"
        plain = i == o and stride == 1
        self.shortcut: nn.Module = nn.Identity()
        if not plain or rng.random() < 0.2:
            self.shortcut = Shortcut(shortcut, i, o, stride, rng)
        self.body = nn.Sequential(*_body(kind, i, o, stride, act, rng))

    def forward(self, x: Tensor) -> Tensor:
        y, short = self.body(x), self.shortcut(x)
        if self.kind == "scaled":
            y = y * 0.3
        elif self.kind == "subtracted":
            y = short * 0.5 - y
            return self.after(y)
        return self.after(y + short)


def _body(
    kind: str, i: int, o: int, stride: int, act: Callable[[int], nn.Module], rng: Random
) -> list[nn.Module]:
    m = rng.choice([4, 8])
    first = [*conv(i, m, 3, rng, stride), act(m)]
    if kind == "bottleneck":
        middle = [*conv(m, m, 3, rng, stride), act(m)]
        return [*conv(i, m, 1, rng), act(m), *middle, *conv(m, o, 1, rng)]
    if kind == "grouped":
        middle = [*conv(m, 2 * m, 3, rng, stride, groups=rng.choice([2, 4])), act(2 * m)]
        return [*conv(i, m, 1, rng), act(m), *middle, *conv(2 * m, o, 1, rng)]
    if kind == "inverted":
        h = 2 * i
        middle = [*conv(h, h, rng.choice([3, 5]), rng, stride, groups=h), act(h)]
        return [*conv(i, h, 1, rng), act(h), *middle, *conv(h, o, 1, rng)]
    if kind == "preactivated":
        return [norm(i, rng), act(i), *first, *conv(m, o, 3, rng)]
    if kind in ("se inside", "old se"):
        return [*first, Gate(m, kind == "old se"), *conv(m, o, 1, rng)]
    if kind == "se last":
        return [*first, *conv(m, o, 3, rng), Gate(o, old=False)]
    if kind == "depthwise first":
        return [*conv(i, i, 3, rng, stride, groups=i), act(i), *conv(i, o, 1, rng)]
    if kind == "depthwise last":
        return [*conv(i, o, 1, rng), act(o), *conv(o, o, 3, rng, stride, groups=o)]
    if kind == "activated last":
        return [*first, *conv(m, o, 3, rng), act(o)]
    return [*first, *conv(m, o, 3, rng)]


def build(seed: int) -> nn.Module:
    """Return the network of a seed; it reads (N, 3, even, even)."""
    return drawn(Random(seed), seed)


def drawn(rng: Random, seed: int = 0, blocks: int = 3) -> nn.Module:
    """Return a network of random choices, with the weights of a seed."""
    torch.manual_seed(seed)
    start = rng.choice([nn.ReLU(), nn.Identity(), nn.ReLU6()])
    layers: list[nn.Module] = [*conv(3, 4, 3, rng), start]
    width = 4
    for _ in range(blocks):
        stride = rng.choice([1, 1, 2])
        wider = rng.choice([width, width, 2 * width, width + 4])
        layers.append(Block(width, wider, stride, rng.choice(KINDS), rng))
        width = wider
    return nn.Sequential(*layers).double().eval()


class Net(nn.Module):
    """A network around a function of its own layers."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.body = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def rng(seed: int = 0) -> Random:
    """Return a generator of choices; torch starts from the same seed."""
    torch.manual_seed(seed)
    return Random(seed)


def pair(act: nn.Module, width: int = 4, size: int = 3) -> nn.Sequential:
    """Return conv, norm, function, conv, norm, alive."""
    r = rng()
    return nn.Sequential(*conv(width, 6, size, r), act, *conv(6, width, size, r)).double().eval()


class Additions(TorchDispatchMode):
    """Counts the additions of two maps of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket.__name__ in ("add", "add_", "sub", "sub_"):
            maps = [a for a in args if isinstance(a, Tensor) and a.ndim > 2]
            self.count += len(maps) == 2 and maps[0].shape == maps[1].shape
        return func(*args, **(kwargs or {}))


def additions(model: nn.Module, x: Tensor) -> int:
    """Return how many two-map additions one call makes."""
    with torch.no_grad(), Additions() as counter:
        model(x)
    return counter.count
