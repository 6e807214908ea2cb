"""The grid that every block is folded over, and statistics that are alive."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from functools import cache
from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor, nn

from refold import blocks

BLOCKS: dict[str, type[blocks.BranchedBlock]] = {
    "acb": blocks.ACBlock,
    "repvgg": blocks.RepVGGBlock,
    "dbb": blocks.DiverseBranchBlock,
    "mobileone": blocks.MobileOneBlock,
    "qarepvgg": blocks.QARepVGGBlock,
    "dilated": blocks.DilatedReparamBlock,
    "large_kernel": blocks.LargeKernelBlock,
    "orepa": blocks.OREPABlock,
}
TRANSPOSED = [
    name for name in BLOCKS if name != "dbb"
]  # a 1x1's bias cannot pass a scattering kernel
CHANNELS = 4
KERNELS: dict[int, list[tuple[int, ...]]] = {
    1: [(1,), (2,), (3,), (5,), (7,)],
    2: [(1, 1), (2, 2), (3, 3), (5, 5), (7, 7), (1, 3), (3, 1)],
    3: [(1, 1, 1), (2, 2, 2), (3, 3, 3), (5, 5, 5), (7, 7, 7), (1, 3, 3), (3, 1, 1)],
}


@dataclass(frozen=True)
class Cell:
    kernel: tuple[int, ...]
    stride: int
    padding: int
    dilation: int
    groups: int
    out_channels: int

    @property
    def is_even(self) -> bool:
        return any(size % 2 == 0 for size in self.kernel)

    @property
    def is_depthwise(self) -> bool:
        return self.groups == self.out_channels == CHANNELS

    @property
    def keeps_shape(self) -> bool:
        return self.stride == 1 and self.out_channels == CHANNELS

    def build(self, name: str, **options: Any) -> blocks.BranchedBlock:
        factory: Any = BLOCKS[name]
        return factory(
            CHANNELS, self.out_channels, self.kernel, self.stride, self.padding, self.dilation,
            self.groups,
            ndim=len(self.kernel), dtype=torch.float64, **options,
        )  # fmt: skip

    def map(self, generator: torch.Generator, transposed: bool = False) -> Tensor:
        """Return the smallest map with a few outputs on each axis, no two axes alike."""
        spans = [self.dilation * (size - 1) + 1 for size in self.kernel]
        lost = [2 * self.padding + 1 if transposed else span - 2 * self.padding for span in spans]
        sizes = [max(least, 1) + 2 + axis for axis, least in enumerate(lost)]
        return torch.randn(2, CHANNELS, *sizes, generator=generator, dtype=torch.float64)


def cells(ndim: int) -> Iterator[Cell]:
    """Yield the whole grid: every kernel with each padding from 0 to its size."""
    for kernel in KERNELS[ndim]:
        options = (1, 2), range(max(kernel) + 1), (1, 2), (1, 2, CHANNELS), (CHANNELS, 2 * CHANNELS)
        for stride, padding, dilation, groups, out_channels in product(*options):
            yield Cell(kernel, stride, padding, dilation, groups, out_channels)


def pairs(cell: Cell) -> set[tuple[Any, ...]]:
    """Return every two of a cell's options, each with its name."""
    return set(combinations(enumerate(astuple(cell)), 2))


@cache
def covering(ndim: int) -> tuple[Cell, ...]:
    """Return cells that hold every two options of the grid together.

    So do those of them that keep the shape alone, for there a block has its identity branch.
    """
    whole = list(cells(ndim))
    chosen: list[Cell] = []
    for part in ([cell for cell in whole if cell.keeps_shape], whole):
        left = set[Any]().union(*map(pairs, part)).difference(*map(pairs, chosen))
        while left:
            chosen.append(max(part, key=lambda cell: len(pairs(cell) & left)))
            left -= pairs(chosen[-1])
    return tuple(chosen)


def enliven(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """Give every tensor random values, scales of both signs; return the module in eval mode."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else drawn)
    return module.eval()


def error(reference: Tensor, candidate: Tensor) -> float:
    """Return the largest difference relative to the largest value."""
    assert reference.shape == candidate.shape
    return ((reference - candidate).abs().max() / reference.abs().max()).item()


def layers(module: nn.Module) -> tuple[int, int]:
    """Return how many convolutions and how many norms a module holds."""
    names = [type(part).__name__ for part in module.modules()]
    return sum(name.startswith("Conv") and name != "ConvNorm" for name in names), sum(
        "Norm" in name for name in names
    )
