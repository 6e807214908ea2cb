"""What RepMLP's blocks share: maps in partitions, a linear layer on each, convolutions beside it.

Parameter names follow the authors' checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import Tensor, fx, nn

from refold.algebra.apply import pad
from refold.algebra.geometry import Size, sizes
from refold.blocks.layers import Maker
from refold.blocks.spec import Amounts, ConvSpec
from refold.errors import GeometryError, RefusedError
from refold.graph import like_of, lower
from refold.transforms import equivalent_linear


@dataclass(frozen=True)
class Grid:
    """A map in partitions of one size; a map that they do not divide is padded below and right."""

    size: tuple[int, int]
    partition: tuple[int, int]

    @classmethod
    def of(cls, size: Size, partition: Size) -> Grid:
        """Return the grid of torch-like sizes.

        Raises:
            GeometryError: when a size is not a positive int or two of them.

        Examples:
            >>> Grid.of(12, (5, 6)).parts
            (3, 2)
        """
        return cls(pair(size, "img_size"), pair(partition, "partition"))

    @property
    def parts(self) -> tuple[int, int]:
        """Partitions along each axis."""
        (height, width), (h, w) = self.size, self.partition
        return -(-height // h), -(-width // w)

    @property
    def ring(self) -> Amounts:
        """Positions added after each axis."""
        rows = zip(self.size, self.partition, self.parts, strict=True)
        return tuple((0, count * step - whole) for whole, step, count in rows)

    @property
    def is_one(self) -> bool:
        """Whether the whole map is a single partition."""
        return self.parts == (1, 1)

    @property
    def is_whole(self) -> bool:
        """Whether that partition is the map as it is, without padding."""
        return self.size == self.partition

    def padded(self, x: Tensor, channels: int) -> Tensor:
        """Return maps of this size and so many channels in the size of whole partitions.

        Raises:
            GeometryError: when they are of another size.
        """
        shape = (channels, *self.size)
        if not isinstance(x, fx.Proxy) and tuple(x.shape[1:]) != shape:
            raise GeometryError(
                f"the block is built for maps of {shape} (channels, height, width), got "
                f"{tuple(x.shape[1:])}: build it with their size"
            )
        return pad(x, self.ring, "zeros", 0.0)

    def cut(self, x: Tensor) -> Tensor:
        """Return a padded map with its partitions apart: (N, C, rows, h, columns, w).

        A map of another size, transposed say, does not pass.
        """
        (h, w), (rows, columns) = self.partition, self.parts
        return x.unflatten(2, (rows, h)).unflatten(4, (columns, w))

    def stack(self, grid: Tensor, channels: int) -> Tensor:
        """Return partitions one after the other, as a batch: (N * rows * columns, C, h, w)."""
        return grid.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, *self.partition)

    def join(self, stack: Tensor, channels: int) -> Tensor:
        """Return the map made of a batch of partitions, in its own size."""
        if self.is_whole:
            return stack.reshape(-1, channels, *self.size)
        (h, w), (rows, columns) = self.partition, self.parts
        grid = stack.reshape(-1, rows, columns, channels, h, w).permute(0, 3, 1, 4, 2, 5)
        whole = grid.reshape(-1, channels, rows * h, columns * w)
        return pad(whole, tuple((-lo, -hi) for lo, hi in self.ring), "zeros", 0.0)


def pair(value: Size, name: str) -> tuple[int, int]:
    """Return an int or (height, width) as two ints.

    Raises:
        GeometryError: when it is neither, or not positive.
    """
    height, width = sizes(value, 2, name, 1)
    return height, width


class PartitionBlock(nn.Module):
    """A linear layer on the flattened partition (FC3) and convolutions on it, each with a norm.

    Args:
        grid: the maps and their partitions.
        channels: (in, out) of the partitions.
        groups: of FC3 and of the convolutions.
        kernels: sizes of the convolutions, odd, int or (height, width).
        make: makes the layers; with `make.deploy`, FC3 alone, with a bias.
        norm_on_map: FC3's norm stands after the layout as a map: one scale a channel instead of one
            a number.
        window: size of a convolution in FC3's place, with its norm on the map; None for FC3.
    """

    def __init__(
        self,
        grid: Grid,
        channels: tuple[int, int],
        groups: int,
        kernels: Sequence[Size],
        make: Maker,
        *,
        norm_on_map: bool,
        window: Size | None = None,
    ) -> None:
        super().__init__()
        self.grid, self.channels, self.is_windowed = grid, channels, window is not None
        self.norm_on_map = norm_on_map or self.is_windowed
        names = {_name(size): size for size in (pair(k, "kernels") for k in kernels)}
        specs = {name: _centred(size, channels, groups, grid) for name, size in names.items()}
        positions = grid.partition[0] * grid.partition[1]
        rows, columns = (positions * count for count in reversed(channels))
        self.fc3 = nn.Conv2d(columns, rows, 1, groups=groups, bias=make.deploy, **make.lasting)
        if window is not None:
            spec = _odd(pair(window, "fc3_window"), channels, groups)
            self.fc3 = cast(nn.Conv2d, spec.build(bias=make.deploy, **make.lasting))
        self.locals: tuple[str, ...] = ()
        if make.deploy:
            return
        self.locals = tuple(names)
        self.fc3_bn = make.norm(channels[1], 2) if self.norm_on_map else make.norm(rows, 1)
        for name, spec in specs.items():
            self.add_module(name, make.conv_norm(spec))

    @property
    def partition_size(self) -> tuple[int, int]:
        """Size of the maps that FC3 reads, which its weights alone do not tell."""
        return self.grid.partition

    @property
    def deploy(self) -> bool:
        """Whether FC3 is all there is, by the block's own doing or the engine's."""
        return "fc3_bn" not in self._modules

    def perceive(self, stack: Tensor) -> Tensor:
        """Return what FC3 and the convolutions give on a batch of partitions."""
        total = self.fc3(stack) if self.is_windowed else self._through_rows(stack)
        if not self.deploy and self.norm_on_map:
            total = self.fc3_bn(total)
        for name in self.locals:
            total = total + getattr(self, name)(stack)
        return total

    def _through_rows(self, stack: Tensor) -> Tensor:
        row = self.fc3(stack.reshape(-1, self.fc3.in_channels, 1, 1))
        if not self.deploy and not self.norm_on_map:
            row = self.fc3_bn(row.flatten(1))
        return row.reshape(-1, self.channels[1], *self.grid.partition)

    def switch_to_deploy(self) -> None:
        """Replace FC3, the convolutions and their norms by the one linear layer they add up to.

        Raises:
            RefusedError: in training mode, or when a folded value does not fit the block's
                precision.
        """
        if self.training:
            raise RefusedError(
                f"{type(self).__name__} is in training mode, where norms use the batch; "
                "call eval() first"
            )
        if not self.deploy:
            example = self.fc3.weight.new_empty(1, self.channels[0], *self.grid.partition)
            self.fc3 = cast(nn.Conv2d, linear_of(_Perceive(self), example))
            for name in ("fc3_bn", *self.locals):
                delattr(self, name)
            self.locals = ()

    def fuse(self) -> Self:
        """Do as `switch_to_deploy` and return the block."""
        self.switch_to_deploy()
        return self

    def orthogonal_init(self) -> None:
        """Start FC3 orthogonal, group by group, as the authors do; slow where it is large."""
        for block in self.fc3.weight.detach().flatten(1).chunk(self.fc3.groups):
            nn.init.orthogonal_(block)


class _Perceive(nn.Module):
    """The affine part of a block on a batch of partitions."""

    def __init__(self, block: PartitionBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, stack: Tensor) -> Tensor:
        return self.block.perceive(stack)


def linear_of(part: nn.Module, example: Tensor) -> nn.Module:
    """Return the one layer with a matrix that an affine part folds to, in that part's precision.

    Raises:
        RefusedError: when more than one remains.
    """
    conv = equivalent_linear(part.eval(), example)
    with torch.no_grad():
        return lower(conv, like_of(list(part.parameters()), len(conv.axes))).eval()


def _name(kernel: tuple[int, int]) -> str:
    height, width = kernel
    return f"repconv{height}" if height == width else f"repconv{height}x{width}"


def _centred(
    kernel: tuple[int, int], channels: tuple[int, int], groups: int, grid: Grid
) -> ConvSpec:
    if any(k > n for k, n in zip(kernel, grid.partition, strict=True)):
        raise GeometryError(f"kernel {kernel} is larger than the partition {grid.partition}")
    return _odd(kernel, channels, groups)


def _odd(kernel: tuple[int, int], channels: tuple[int, int], groups: int) -> ConvSpec:
    if not all(size % 2 for size in kernel):
        raise GeometryError(f"kernel {kernel} has no centre: it must be odd")
    half = (kernel[0] // 2, kernel[1] // 2)
    return ConvSpec.of(*channels, kernel, padding=half, groups=groups)
