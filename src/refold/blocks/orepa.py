"""OREPA: branches without norms, whose kernels are added before the one convolution runs.

Hu et al. 2022, Online Convolutional Re-parameterization, arXiv:2204.00826. Parameter names follow
the authors' checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import cos, pi
from typing import Any, ClassVar, Unpack, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refold.algebra.geometry import Size
from refold.blocks.arguments import TransposedOptions, parse
from refold.blocks.base import Activation
from refold.blocks.layers import CONVOLVE, SCATTER
from refold.blocks.stacking import LinearBlock
from refold.branches import register_block
from refold.errors import GeometryError
from refold.graph import ScaleShift
from refold.transforms import avg_pool_to_conv

_EXPANSION = 8
_POINTS = ("avg_conv", "pfir_conv", "1x1")
"""The pointwise kernels: before an average, before the frequency prior, and in the centre."""

_START = (0.25, 0.25, 0.0, 0.5, 1.0, 0.5)
"""First scales of origin, average, frequency prior, 1x1 before KxK, 1x1 and depthwise-separable."""


@register_block("orepa")
class OREPABlock(LinearBlock):
    """act(norm(conv(x, W))), W the sum of six kernels, each with a learned scale per channel.

    Training costs one convolution at the map's size, whatever the branches: only kernels are added.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: odd on every axis.
        stride: of the convolution.
        padding: of the convolution.
        dilation: of the convolution.
        groups: of the convolution.
        ndim: spatial axes, 1 to 3.
        transposed: make the convolution transposed.
        output_padding: of a transposed convolution.
        internal_channels: between the 1x1 and the KxK; `in_channels` where None, twice as many from
            5 groups on.
        single_init: start as the main kernel alone.
        activation: makes the activation; None for none.
        deploy: build the plain form.
        device: of the tensors.
        dtype: of the tensors.

    Raises:
        GeometryError: when the 1x1 cannot be centred in the kernel, or groups do not divide the
            inner channels.

    Examples:
        >>> block = OREPABlock(4, 8, 3, padding=1).eval()
        >>> x = torch.randn(1, 4, 8, 8)
        >>> before = block(x)
        >>> torch.allclose(block.fuse()(x), before, atol=1e-5)
        True

    Source: arXiv:2204.00826, section 3.
    """

    deploy_name: ClassVar[str] = "orepa_reparam"
    main: ClassVar[tuple[str, str]] = ("", "bn")
    weight_orepa_origin: Tensor
    weight_orepa_avg_conv: Tensor
    weight_orepa_avg_avg: Tensor
    weight_orepa_pfir_conv: Tensor
    weight_orepa_prior: Tensor
    weight_orepa_1x1: Tensor
    weight_orepa_1x1_kxk_conv2: Tensor
    weight_orepa_gconv_dw: Tensor
    weight_orepa_gconv_pw: Tensor
    id_tensor: Tensor

    def __init__(
        self,
        *conv: Size | str,
        internal_channels: int | None = None,
        single_init: bool = False,
        activation: Activation = nn.ReLU,
        **options: Unpack[TransposedOptions],
    ) -> None:
        spec, make = parse(TransposedOptions, conv, options)
        inner = internal_channels or spec.in_channels * (1 if spec.groups <= 4 else 2)
        if inner % spec.groups:
            raise GeometryError(f"spec.groups {spec.groups} must divide internal_channels {inner}")
        super().__init__(spec, activation)
        self.rings = [side for ring in reversed(spec.centre_ring) for side in (ring, ring)]
        self._make_weights(inner, make.options)
        self._make_constants(inner, make.options)
        self.vector = nn.Parameter(torch.empty(len(_START), spec.out_channels, **make.options))
        self.bn = make.norm(spec.out_channels, spec.ndim)
        self._start((1.0, *(0.0,) * 5) if single_init else _START)
        self._finish(make)

    def convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Return the norm of the convolution with the summed kernel."""
        spec = self.spec
        if spec.transposed:
            y = SCATTER[spec.ndim](
                x, _turned(kernel, spec.groups), None, spec.stride, spec.padding,
                spec.output_padding, spec.groups, spec.dilation
            )  # fmt: skip
        else:
            y = CONVOLVE[spec.ndim](
                x, kernel, None, spec.stride, spec.padding, spec.dilation, spec.groups
            )
        return self.bn(y)

    def kernels(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Return the summed kernels of blocks of this shape, (blocks, O, I/groups, *kernel)."""
        # one read of the scales, which tracing allows
        main, average, prior, mixed, point, apart = parts["vector"].unbind(1)
        own = parts["weight_orepa_origin"].flatten(3)
        terms = torch.stack([own, self._pointwise_kxk(parts), self._separable(parts)], 2)
        scales = torch.stack([main, mixed, apart], 2).flatten(0, 1)
        # three sums over few terms, each of which a product of matrices adds up in one call
        total = torch.bmm(scales[:, None], terms.flatten(0, 1).flatten(2))
        points = [parts[f"weight_orepa_{name}"].flatten(2) for name in _POINTS]
        taps = self._taps(parts) * torch.stack([average, prior, point], 2)[..., None]
        outer = torch.stack(points, 3).flatten(0, 1)
        total = torch.baddbmm(total.view(*outer.shape[:2], -1), outer, taps.flatten(0, 1))
        return total.view(*own.shape[:3], *self.spec.kernel_size)

    def _taps(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Return what the three pointwise kernels are spread over: (blocks, O, 3, taps)."""
        prior = parts["weight_orepa_prior"]
        average = parts["weight_orepa_avg_avg"][:, None].expand(prior.shape)
        centre = F.pad(prior.new_ones(*prior.shape[:2], *(1,) * self.spec.ndim), self.rings)
        return torch.stack([average, prior, centre], 2).flatten(3)

    def init_gamma(self, value: float) -> None:
        """Set the scale of every branch."""
        nn.init.constant_(self.vector, value)

    def single_init(self) -> None:
        """Start as the main kernel alone: all other branches scaled to zero."""
        self._start((1.0, *(0.0,) * 5))

    def adopt(self, conv: nn.Module, norm: nn.Module | None, *, preserve: bool = True) -> None:
        """Take over the kernel of a convolution, and its norm as the one after the sum.

        To preserve, the main kernel gives way to what the others add. A bias moves into the norm's
        running mean, or stands alone where there is no norm.
        """
        like = cast(nn.Conv2d, conv)
        self._take(conv, norm)
        with torch.no_grad():
            weight, groups = like.weight, self.spec.groups
            main = _turned(weight, groups) if self.spec.transposed else weight
            if preserve:
                rest = self.weight_gen() - self.weight_orepa_origin * _rows(self.vector[0], main)
                main = (main - rest) / _rows(self.vector[0], main)
            self.weight_orepa_origin.copy_(main)
            self.weight_orepa_origin.requires_grad_(weight.requires_grad)
            if like.bias is not None and norm is not None:
                cast(Tensor, norm.running_mean).sub_(like.bias)
            elif like.bias is not None:
                self.bn = ScaleShift(None, like.bias.detach().clone(), self.spec.ndim)

    def _start(self, scales: tuple[float, ...]) -> None:
        with torch.no_grad():
            for row, scale in zip(self.vector, scales, strict=True):
                row.fill_(scale)

    def _pointwise_kxk(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Return the kernels of the 1x1 and the KxK, (blocks, O, I/groups, taps)."""
        groups = self.spec.groups
        first = (parts["weight_orepa_1x1_kxk_idconv1"] + parts["id_tensor"]).flatten(2)
        second = parts["weight_orepa_1x1_kxk_conv2"].flatten(3).transpose(2, 3)
        count, channels, taps, inner = second.shape
        rows = second.reshape(count * groups, -1, inner)  # a row is a tap of an output channel
        mixed = torch.bmm(rows, first.reshape(count * groups, inner, -1))
        return mixed.view(count, channels, taps, -1).transpose(2, 3)

    def _separable(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Return the kernels of the depthwise-separable branch, (blocks, O, I/groups, taps)."""
        groups, depthwise = self.spec.groups, parts["weight_orepa_gconv_dw"].flatten(2)
        count, taps = depthwise.shape[0], depthwise.shape[2]
        depthwise = depthwise.reshape(-1, _EXPANSION, taps)
        pointwise = parts["weight_orepa_gconv_pw"].flatten(2)
        pointwise = pointwise.unflatten(2, (-1, _EXPANSION)).unflatten(1, (groups, -1))
        width, wide = pointwise.shape[3], pointwise.shape[2]
        rows = pointwise.transpose(2, 3).reshape(-1, wide, _EXPANSION)
        apart = torch.bmm(rows, depthwise).view(count, groups, width, wide, taps)
        return apart.transpose(2, 3).flatten(1, 2)

    def _make_weights(self, inner: int, options: dict[str, Any]) -> None:
        spec = self.spec
        point, width, depth = (
            (1,) * spec.ndim,
            spec.in_channels // spec.groups,
            spec.in_channels * _EXPANSION,
        )
        shapes: dict[str, tuple[int, ...]] = {
            "origin": (spec.out_channels, width, *spec.kernel_size),
            "avg_conv": (spec.out_channels, width, *point),
            "pfir_conv": (spec.out_channels, width, *point),
            "1x1": (spec.out_channels, width, *point),
            "1x1_kxk_conv2": (spec.out_channels, inner // spec.groups, *spec.kernel_size),
            "gconv_dw": (depth, 1, *spec.kernel_size),
            "gconv_pw": (spec.out_channels, depth // spec.groups, *point),
        }
        for name, shape in shapes.items():
            weight = nn.Parameter(torch.empty(shape, **options))
            nn.init.kaiming_uniform_(weight)
            self.register_parameter(f"weight_orepa_{name}", weight)
        start = torch.zeros(inner, width, *point, **options)
        self.weight_orepa_1x1_kxk_idconv1 = nn.Parameter(start)

    def _make_constants(self, inner: int, options: dict[str, Any]) -> None:
        spec = self.spec
        taps = torch.full(spec.kernel_size, 1.0, **options)
        self.register_buffer("weight_orepa_avg_avg", taps / taps.numel())
        self.register_buffer(
            "weight_orepa_prior", frequencies(spec.out_channels, spec.kernel_size).to(**options)
        )
        eye = avg_pool_to_conv(spec.in_channels, 1, groups=spec.groups, ndim=spec.ndim)
        copies = -(-inner // spec.in_channels)
        identity = eye.repeat(copies, *(1,) * (spec.ndim + 1))[:inner]
        self.register_buffer("id_tensor", identity.to(**options))


def _turned(weight: Tensor, groups: int) -> Tensor:
    """Swap (O, I/groups, ...) and (I, O/groups, ...): torch's layout of transposed kernels."""
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


def _rows(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.reshape(-1, *(1,) * (weight.ndim - 1))


def frequencies(channels: int, kernel_size: tuple[int, ...]) -> Tensor:
    """Return cosines along one axis a channel: the axes in equal parts, frequencies rising.

    Shape:
        -> (channels, *kernel_size).

    Examples:
        >>> frequencies(2, (3, 3))[0, :, 0].round(decimals=3)
        tensor([ 0.8660,  0.0000, -0.8660])
    """
    rows: list[Tensor] = []
    for channel in range(channels):
        axis = channel * len(kernel_size) // channels
        frequency = channel + 1 - axis * channels / len(kernel_size)
        size = kernel_size[axis]
        wave = torch.tensor([cos(pi * (tap + 0.5) * frequency / size) for tap in range(size)])
        shape = [1] * len(kernel_size)
        shape[axis] = size
        rows.append(wave.reshape(shape).expand(kernel_size))
    return torch.stack(rows)
