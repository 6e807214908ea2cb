"""The layers that branches are made of."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refold.algebra.apply import pad
from refold.algebra.norm import norm_affine
from refold.blocks.spec import Amounts, ConvSpec
from refold.errors import RefusedError
from refold.ranked import CONVS, NORMS
from refold.transforms import avg_pool_to_conv

CONVOLVE: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
AVERAGE: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
SCATTER: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}

_OPEN = 100.0
"""The sigmoid of this is exactly 1, down to half precision."""


@dataclass(frozen=True)
class Maker:
    """Makes layers on one device in one precision; for a block to be deployed at once, on `meta`.

    Args:
        device: where the block's tensors live.
        dtype: their precision.
        deploy: whether the branches are only there to be folded.
    """

    device: Any = None
    dtype: torch.dtype | None = None
    deploy: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The `device` and `dtype` of a branch's tensors."""
        return {"device": "meta" if self.deploy else self.device, "dtype": self.dtype}

    @property
    def lasting(self) -> dict[str, Any]:
        """The `device` and `dtype` of what deploying keeps."""
        return {"device": self.device, "dtype": self.dtype}

    def conv(self, spec: ConvSpec) -> nn.Module:
        """Return the convolution without bias."""
        return spec.build(bias=False, **self.options)

    def norm(self, channels: int, ndim: int) -> nn.Module:
        """Return a batch norm."""
        return NORMS[ndim](channels, **self.options)

    def conv_norm(self, spec: ConvSpec, crop: Amounts = ()) -> ConvNorm:
        """Return a convolution with its norm, its input cropped first."""
        return ConvNorm(self.conv(spec), self.norm(spec.out_channels, spec.ndim), crop)

    def identity_norm(self, spec: ConvSpec, wanted: bool | None) -> nn.Module | None:
        """Return the norm of the identity branch, or None; see `has_identity`."""
        there = has_identity(spec, wanted)
        return self.norm(spec.out_channels, spec.ndim) if there else None

    def gate(
        self, spec: ConvSpec, hidden: int, names: tuple[str, str] = ("down", "up"), passed: int = 0
    ) -> SqueezeExcite:
        """Return squeeze-and-excite for a convolution's output, which deploying keeps."""
        hidden = max(hidden, 1)
        return SqueezeExcite(
            spec.out_channels, hidden, names, spec.ndim, passed=passed, **self.lasting
        )


def has_identity(spec: ConvSpec, wanted: bool | None) -> bool:
    """Return whether a block has an identity branch.

    Args:
        spec: the main convolution.
        wanted: True requires the branch, False leaves it out, None has it wherever it can be.

    Raises:
        RefusedError: when it is required and cannot be.

    Examples:
        >>> has_identity(ConvSpec.of(4, 8, 3, padding=1), None)
        False
    """
    resizes = spec.transposed and (any(map(any, spec.identity_ring)) or any(spec.output_padding))
    possible = spec.keeps_shape and not resizes
    if wanted and not possible:
        raise RefusedError(
            f"an identity branch needs equal channels and stride 1 (transposed: equal sizes too), "
            f"got {spec.in_channels} -> {spec.out_channels}, stride {spec.stride}; "
            "leave identity=None"
        )
    return possible and wanted is not False


class ConvNorm(nn.Module):
    """A convolution and its norm, named as the official checkpoints name them.

    Args:
        conv: the convolution.
        bn: its norm.
        crop: how the input is cropped first; empty for not at all.
    """

    def __init__(self, conv: nn.Module, bn: nn.Module, crop: Amounts = ()) -> None:
        super().__init__()
        self.conv, self.bn, self.crop = conv, bn, crop

    def forward(self, x: Tensor) -> Tensor:
        """Return norm(conv(x)); shape as the convolution's."""
        return self.bn(self.conv(pad(x, self.crop, "zeros", 0.0)))


class BNAndPad(nn.Module):
    """A batch norm whose padding is what the norm makes of zero, so that a 1x1 before it may pad.

    In eval it is the norm of the zero-padded map. In training the map is normalised with its own
    statistics, the ring with the running ones, and no gradient flows into the ring.

    Args:
        bn: the norm.
        padding: rings per axis.

    Shape:
        (N, C, *spatial) -> (N, C, *spatial + 2 padding).

    Examples:
        >>> layer = BNAndPad(nn.BatchNorm2d(4), (1, 1))
        >>> layer(torch.zeros(2, 4, 3, 3)).shape
        torch.Size([2, 4, 5, 5])

    Source: DBB, arXiv:2103.13425, section 3.3.
    """

    def __init__(self, bn: nn.Module, padding: tuple[int, ...]) -> None:
        super().__init__()
        self.bn = bn
        self.rings = tuple((ring, ring) for ring in padding)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised map with its ring."""
        if not self.bn.training or not any(ring for ring, _ in self.rings):
            return self.bn(pad(x, self.rings, "zeros", 0.0))
        inner = self.bn(x)  # first: it moves the running statistics
        return cast(Tensor, _Ringed.apply(inner, self._of_zero().to(inner.dtype), self.rings))

    def _of_zero(self) -> Tensor:
        """Return what the norm makes of zero with its running statistics."""
        norm = cast(nn.BatchNorm2d, self.bn)
        if norm.running_mean is None:
            raise RefusedError("BNAndPad pads with running statistics; its norm must track them")
        with torch.no_grad():
            op = norm_affine(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)
        return cast(Tensor, op.shift)


class _Ringed(torch.autograd.Function):
    """A map inside a ring of one constant per channel, written in place of a sum over the map."""

    @staticmethod
    def forward(ctx: Any, inner: Tensor, value: Tensor, rings: Amounts) -> Tensor:
        """Return the map with its ring."""
        ctx.rings = rings
        y = pad(inner, rings, "zeros", 0.0)
        around = value.reshape(-1, *(1,) * len(rings))
        for axis, (before, after) in enumerate(rings, 2):
            y.narrow(axis, 0, before).copy_(around)
            y.narrow(axis, y.shape[axis] - after, after).copy_(around)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        """Return the gradient inside the ring."""
        for axis, (before, after) in enumerate(ctx.rings, 2):
            grad = grad.narrow(axis, before, grad.shape[axis] - before - after)
        return grad, None, None


class WindowMean(nn.Module):
    """An average over a convolution's windows, border zeros counted.

    It is torch's average pool wherever there is one, but in training a depthwise convolution where
    that takes less time: pooling and its backward pass are several times as slow on a CPU in
    torch's own layout, and on a GPU in channels-last (`benchmarks/train_cost.py`).

    Args:
        channels: of the map.
        spec: the convolution whose windows it shares.
        device: of the averaging kernel.
        dtype: of the averaging kernel.
    """

    kernel: Tensor

    def __init__(
        self, channels: int, spec: ConvSpec, *, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.spec, self.channels = spec, channels
        kernel = avg_pool_to_conv(
            channels, spec.kernel_size, groups=channels, ndim=spec.ndim, dtype=dtype
        )
        self.register_buffer("kernel", kernel.to(device), persistent=False)
        rows = zip(spec.padding, spec.kernel_size, strict=True)
        fits = all(p <= k // 2 for p, k in rows) and (spec.ndim < 3 or not any(spec.padding))
        # avg_pool3d does not count padding into a map's size
        self.has_pool = fits and set(spec.dilation) == {1}

    def forward(self, x: Tensor) -> Tensor:
        """Return the averages."""
        spec = self.spec
        if self.has_pool and not (self.training and _pools_slowly(x)):
            return AVERAGE[spec.ndim](x, spec.kernel_size, spec.stride, spec.padding)
        return CONVOLVE[spec.ndim](
            x, self.kernel, None, spec.stride, spec.padding, spec.dilation, self.channels
        )


def _pools_slowly(x: Tensor) -> bool:
    if x.ndim != 4:
        return False
    return x.is_contiguous(memory_format=torch.channels_last) == (x.device.type != "cpu")


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the means of all: two pointwise layers.

    Args:
        channels: in and out.
        hidden: channels between the two.
        names: of the two convolutions, as the checkpoint names them.
        ndim: spatial axes.
        passed: how many channels, the first ones, are only read: their gate is 1.
        device: of the weights.
        dtype: of the weights.

    Shape:
        (N, C, *spatial) -> the same.

    Source: Hu et al. 2018, arXiv:1709.01507.
    """

    mask: Tensor
    open: Tensor

    def __init__(
        self,
        channels: int,
        hidden: int,
        names: tuple[str, str],
        ndim: int,
        *,
        passed: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.names, self.axes, self.order = names, tuple(range(-ndim, 0)), list[int]()
        conv, gates = CONVS[ndim], channels - passed
        self.add_module(names[0], conv(channels, hidden, 1, device=device, dtype=dtype))
        self.add_module(names[1], conv(hidden, gates, 1, device=device, dtype=dtype))
        if passed:
            self._pass(
                passed, gates, torch.ones(channels, *(1,) * ndim, device=device, dtype=dtype)
            )

    def _pass(self, passed: int, gates: int, ones: Tensor) -> None:
        """Let channels pass: their gate is zero times the layer's output plus a large bias.

        So written, it is one affine map with that layer, and folds into it.
        """
        self.order = [0] * passed + list(range(gates))
        mask = ones.clone()
        mask[:passed] = 0.0
        self.register_buffer("mask", mask, persistent=False)
        self.register_buffer("open", _OPEN * (ones - mask), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return x times its gate."""
        first, second = (getattr(self, name) for name in self.names)
        gate = second(first(x.mean(self.axes, keepdim=True)).relu())
        if self.order:
            gate = gate[:, self.order] * self.mask + self.open
        return x * gate.sigmoid()


def chain(**layers: nn.Module) -> nn.Sequential:
    """Return named layers in a row."""
    return nn.Sequential(OrderedDict(layers))
