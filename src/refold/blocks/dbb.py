"""Diverse Branch Block: a kernel, a 1x1, a 1x1 before a kernel and a 1x1 before an average.

Ding et al. 2021, Diverse Branch Block: Building a Convolution as an Inception-like Unit,
arXiv:2103.13425. Parameter names follow the authors' checkpoints.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Unpack, cast

from torch import Tensor, nn

from refold.algebra.geometry import Size
from refold.blocks.arguments import BlockOptions, parse
from refold.blocks.base import Activation, BranchedBlock
from refold.blocks.layers import BNAndPad, Maker, WindowMean, chain
from refold.blocks.spec import ConvSpec
from refold.branches import register_block
from refold.checkpoint.families import State, register_family
from refold.errors import GeometryError


@register_block("dbb")
class DiverseBranchBlock(BranchedBlock):
    """norm(conv KxK) + norm(conv 1x1) + norm(conv KxK of a 1x1) + norm(average of a 1x1).

    A depthwise block has no 1x1 branch and averages its input itself. Between a 1x1 and what
    follows stands `BNAndPad`, which makes the fold exact at the border.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: odd on every axis.
        stride: of the convolution.
        padding: of the convolution; smaller branches crop where it is smaller than half the kernel.
        dilation: of the convolution.
        groups: of the convolution.
        ndim: spatial axes, 1 to 3.
        internal_channels: between the 1x1 and the KxK; `in_channels` where None, twice as many in a
            depthwise block. With `in_channels` the 1x1 starts as the identity.
        single_init: start as the main branch alone.
        activation: makes the activation; None for none.
        deploy: build the plain form.
        device: of the tensors.
        dtype: of the tensors.

    Raises:
        GeometryError: when the 1x1 cannot be centred in the kernel, or groups do not divide the
            inner channels.

    Examples:
        >>> import torch
        >>> block = DiverseBranchBlock(4, 8, 3, padding=1).eval()
        >>> x = torch.randn(1, 4, 8, 8)
        >>> before = block(x)
        >>> torch.allclose(block.fuse()(x), before, atol=1e-5)
        True

    Source: arXiv:2103.13425, section 3.3.
    """

    deploy_name: ClassVar[str] = "dbb_reparam"
    main: ClassVar[tuple[str, str]] = ("dbb_origin.conv", "dbb_origin.bn")

    def __init__(
        self,
        *conv: Size | str,
        internal_channels: int | None = None,
        single_init: bool = False,
        activation: Activation = None,
        **options: Unpack[BlockOptions],
    ) -> None:
        spec, make = parse(BlockOptions, conv, options)
        super().__init__(spec, activation)
        inner = internal_channels or spec.in_channels * (2 if spec.is_depthwise else 1)
        if inner % spec.groups:
            raise GeometryError(f"spec.groups {spec.groups} must divide internal_channels {inner}")
        self.dbb_origin = make.conv_norm(spec)
        point = None if spec.is_depthwise else spec.smaller((1,) * spec.ndim)
        self.dbb_1x1 = None if point is None else make.conv_norm(*point)
        self.dbb_avg = _averaged(spec, make)
        self.dbb_1x1_kxk = _PointwiseFirst(spec, inner, make)
        if single_init:
            self.single_init()
        self._finish(make)

    def branches(self, x: Tensor) -> Tensor:
        """Return the sum of the branches."""
        total = self.dbb_origin(x) + self.dbb_avg(x) + self.dbb_1x1_kxk(x)
        return total if self.dbb_1x1 is None else total + self.dbb_1x1(x)

    def last_norms(self) -> dict[str, nn.Module]:
        """Return the norm that ends each branch."""
        norms = {"dbb_origin": self.dbb_origin.bn}
        if self.dbb_1x1 is not None:
            norms["dbb_1x1"] = self.dbb_1x1.bn
        ends = {"dbb_avg": self.dbb_avg.avgbn, "dbb_1x1_kxk": self.dbb_1x1_kxk.bn2}
        return {**norms, **cast("dict[str, nn.Module]", ends)}


def _pointwise(spec: ConvSpec, out_channels: int) -> ConvSpec:
    ones = (1,) * spec.ndim
    return ConvSpec.of(spec.in_channels, out_channels, ones, groups=spec.groups, ndim=spec.ndim)


def _averaged(spec: ConvSpec, make: Maker) -> nn.Sequential:
    """Return the averaging branch; a depthwise one averages the padded input itself."""
    last = make.norm(spec.out_channels, spec.ndim)
    if spec.is_depthwise:
        return chain(avg=WindowMean(spec.out_channels, spec, **make.options), avgbn=last)
    norm = BNAndPad(make.norm(spec.out_channels, spec.ndim), spec.padding)
    conv = make.conv(_pointwise(spec, spec.out_channels))
    unpadded = replace(spec, padding=(0,) * spec.ndim)
    pool = WindowMean(spec.out_channels, unpadded, **make.options)
    return chain(conv=conv, bn=norm, avg=pool, avgbn=last)


class _PointwiseFirst(nn.Module):
    """The branch of a 1x1 and a KxK; a 1x1 that keeps the width is added to its own input."""

    def __init__(self, spec: ConvSpec, inner: int, make: Maker) -> None:
        super().__init__()
        self.first = "idconv1" if inner == spec.in_channels else "conv1"
        self.add_module(self.first, make.conv(_pointwise(spec, inner)))
        if self.first == "idconv1":
            nn.init.zeros_(cast(nn.Conv2d, self.idconv1).weight)
        self.bn1 = BNAndPad(make.norm(inner, spec.ndim), spec.padding)
        self.conv2 = make.conv(replace(spec, in_channels=inner, padding=(0,) * spec.ndim))
        self.bn2 = make.norm(spec.out_channels, spec.ndim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch's value; shape as the main convolution's."""
        mixed = getattr(self, self.first)(x)
        return self.bn2(self.conv2(self.bn1(x + mixed if self.first == "idconv1" else mixed)))


@register_family(
    "DBB",
    "dbb_origin.conv.weight",
    parts="dbb_origin|dbb_1x1|dbb_avg|dbb_1x1_kxk",
    deploy=DiverseBranchBlock.deploy_name,
    is_named=True,
)
def _of_state(state: State) -> nn.Module:
    kernel, branch = state["dbb_origin.conv.weight"], "dbb_1x1_kxk."
    first = "idconv1" if f"{branch}idconv1.weight" in state else "conv1"
    inner, per_group = state[f"{branch}{first}.weight"].shape[:2]
    groups, rest = divmod(inner, state[f"{branch}conv2.weight"].shape[1])
    if rest or not groups:
        raise ValueError(
            f"{branch}{first}.weight gives {inner} channels and {branch}conv2.weight reads "
            f"{state[f'{branch}conv2.weight'].shape[1]} per group, which fit no number of groups"
        )
    channels = per_group * groups
    return DiverseBranchBlock.of_kernel(kernel, channels, groups, internal_channels=inner)
