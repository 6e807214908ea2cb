"""The convolution that a block trains branches for, and where smaller kernels go in it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from refold.algebra.geometry import Size, sizes
from refold.errors import GeometryError
from refold.ranked import CONVS, SCATTERS

Amounts = tuple[tuple[int, int], ...]
"""Rings per spatial axis, (before, after); negative ones crop."""

MODES = ("zeros", "reflect", "replicate", "circular")


@dataclass(frozen=True)
class ConvSpec:
    """A convolution or transposed convolution without its weights; one number an axis."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    padding_mode: str = "zeros"
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        *,
        ndim: int = 2,
        padding_mode: str = "zeros",
        transposed: bool = False,
        output_padding: Size = 0,
    ) -> ConvSpec:
        """Return the arguments of torch's convolution, checked.

        Raises:
            GeometryError: when they do not fit together.

        Examples:
            >>> ConvSpec.of(4, 8, 3, padding="same").padding
            (1, 1)
        """
        if ndim not in CONVS:
            raise GeometryError(f"ndim must be 1, 2 or 3, got {ndim}")
        if (
            min(in_channels, out_channels, groups) < 1
            or in_channels % groups
            or out_channels % groups
        ):
            raise GeometryError(
                f"groups {groups} must divide in_channels {in_channels} and out_channels "
                f"{out_channels}, all at least 1"
            )
        if padding_mode not in MODES or (transposed and padding_mode != "zeros"):
            raise GeometryError(
                f"padding_mode {padding_mode!r} must be one of {MODES} (transposed: zeros)"
            )
        kernel = sizes(kernel_size, ndim, "kernel_size", 1)
        steps = sizes(stride, ndim, "stride", 1)
        gaps = sizes(dilation, ndim, "dilation", 1)
        rings = (
            _named_padding(padding, kernel, steps, gaps)
            if isinstance(padding, str)
            else sizes(padding, ndim, "padding", 0)
        )
        extra = sizes(output_padding, ndim, "output_padding", 0)
        if any(extra) and not transposed:
            raise GeometryError("output_padding belongs to transposed convolutions")
        return cls(
            in_channels,
            out_channels,
            kernel,
            steps,
            rings,
            gaps,
            groups,
            padding_mode,
            transposed,
            extra,
        )

    @property
    def ndim(self) -> int:
        """Spatial axes."""
        return len(self.kernel_size)

    @property
    def is_depthwise(self) -> bool:
        """Whether every channel is convolved by itself."""
        return self.groups == self.in_channels == self.out_channels

    @property
    def keeps_shape(self) -> bool:
        """Whether an identity branch fits: as many channels out as in, and stride 1."""
        return self.in_channels == self.out_channels and set(self.stride) == {1}

    @property
    def centre_ring(self) -> tuple[int, ...]:
        """Taps on either side of the centre tap.

        Raises:
            GeometryError: when an even kernel has none.
        """
        self.margins((1,) * self.ndim)
        return tuple(size // 2 for size in self.kernel_size)

    @property
    def identity_ring(self) -> Amounts:
        """How the map of an identity beside it is padded, or cropped."""
        return tuple((p, p) for p in self.margins((1,) * self.ndim))

    def margins(
        self, kernel: tuple[int, ...], dilation: tuple[int, ...] | None = None
    ) -> tuple[int, ...]:
        """Return the padding that a smaller kernel, centred in this one, has on each axis.

        Raises:
            GeometryError: when it cannot be centred.
        """
        gaps = dilation or self.dilation
        rows = list(zip(self.kernel_size, self.dilation, kernel, gaps, strict=True))
        rooms = [d * (size - 1) - gap * (k - 1) for size, d, k, gap in rows]
        on_taps = all(room % (2 * d) == 0 for room, d in zip(rooms, self.dilation, strict=True))
        if min(rooms) < 0 or not on_taps:
            raise GeometryError(
                f"a branch of kernel {kernel} has no centred place in kernel {self.kernel_size}: "
                "use an odd kernel_size"
            )
        return tuple(p - room // 2 for p, room in zip(self.padding, rooms, strict=True))

    def smaller(
        self, kernel: tuple[int, ...], dilation: tuple[int, ...] | None = None
    ) -> tuple[ConvSpec, Amounts]:
        """Return the convolution with a smaller centred kernel, and how its input is cropped.

        Raises:
            GeometryError: when it cannot be centred, or would need a negative padding.
        """
        paddings = self.margins(kernel, dilation)
        if self.transposed and min(paddings) < 0:
            raise GeometryError(
                f"padding {self.padding} is too small for a transposed branch of kernel {kernel}, "
                f"whose output would have to grow; raise the padding by {-min(paddings)}"
            )
        spec = replace(
            self,
            kernel_size=kernel,
            dilation=dilation or self.dilation,
            padding=tuple(max(p, 0) for p in paddings),
        )
        crop = tuple((min(p, 0), min(p, 0)) for p in paddings)
        return spec, crop if min(paddings) < 0 else ()

    def build(
        self, *, bias: bool, device: Any = None, dtype: torch.dtype | None = None
    ) -> nn.Module:
        """Return the convolution as torch's own layer."""
        arguments = (
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
        )
        options: dict[str, Any] = {
            "dilation": self.dilation, "groups": self.groups,
            "bias": bias, "device": device, "dtype": dtype,
        }  # fmt: skip
        if self.transposed:
            return SCATTERS[self.ndim](*arguments, output_padding=self.output_padding, **options)
        return CONVS[self.ndim](*arguments, padding_mode=self.padding_mode, **options)


def _named_padding(
    name: str, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[int, ...]:
    spans = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    if name == "valid":
        return (0,) * len(kernel)
    if name != "same" or set(stride) != {1} or any(span % 2 for span in spans):
        raise GeometryError(
            f"padding must be numbers, 'valid' or 'same' (which needs stride 1 and odd kernels), "
            f"got {name!r}"
        )
    return tuple(span // 2 for span in spans)
