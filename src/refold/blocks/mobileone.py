"""MobileOne: several kernels of one size, a 1x1 and an identity, each with its norm.

Vasu et al. 2023, MobileOne: An Improved One millisecond Mobile Backbone, arXiv:2206.04040.
Parameter names follow the authors' checkpoints.
"""

from __future__ import annotations

from typing import ClassVar, Unpack, cast

from torch import Tensor, nn

from refold.algebra.geometry import Size
from refold.blocks.arguments import ConvOptions, parse
from refold.blocks.base import Activation, BranchedBlock, channels_of
from refold.blocks.layers import ConvNorm
from refold.branches import register_block
from refold.checkpoint.families import State, register_family
from refold.errors import InputError


@register_block("mobileone")
class MobileOneBlock(BranchedBlock):
    """act(se(sum of norm(conv KxK) + norm(conv 1x1) + norm(x))); the 1x1 where K is larger than 1.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: odd on every axis.
        stride: of the convolution.
        padding: of the convolution; smaller branches crop where it is smaller than half the kernel.
        dilation: of the convolution.
        groups: of the convolution.
        ndim: spatial axes, 1 to 3.
        padding_mode: torch's.
        transposed: make the convolutions transposed.
        output_padding: of a transposed convolution.
        num_conv_branches: how many kernels of the full size.
        identity: whether there is an identity branch; None for wherever there can be.
        se: whether squeeze-and-excite stands before the activation, its inner channels a sixteenth.
        activation: makes the activation; None for none.
        deploy: build the plain form.
        device: of the tensors.
        dtype: of the tensors.

    Raises:
        GeometryError: when the branches cannot be centred in the kernel.
        RefusedError: when the identity is asked for and cannot be.
        InputError: when there is no full-size branch.

    Examples:
        >>> import torch
        >>> block = MobileOneBlock(4, 4, 3, padding=1, groups=4, num_conv_branches=4).eval()
        >>> x = torch.randn(1, 4, 8, 8)
        >>> before = block(x)
        >>> torch.allclose(block.fuse()(x), before, atol=1e-5)
        True

    Source: arXiv:2206.04040, section 3.2.
    """

    deploy_name: ClassVar[str] = "reparam_conv"
    main: ClassVar[tuple[str, str]] = ("rbr_conv.0.conv", "rbr_conv.0.bn")
    after: ClassVar[tuple[str, ...]] = ("se", "activation")

    def __init__(
        self,
        *conv: Size | str,
        num_conv_branches: int = 1,
        identity: bool | None = None,
        se: bool = False,
        activation: Activation = nn.ReLU,
        **options: Unpack[ConvOptions],
    ) -> None:
        spec, make = parse(ConvOptions, conv, options)
        if num_conv_branches < 1:
            raise InputError(f"num_conv_branches must be at least 1, got {num_conv_branches}")
        super().__init__(spec, activation)
        hidden = spec.out_channels // 16
        self.se = make.gate(spec, hidden, ("reduce", "expand")) if se else None
        self.rbr_skip = make.identity_norm(spec, identity)
        self.rbr_conv = nn.ModuleList(make.conv_norm(spec) for _ in range(num_conv_branches))
        point = spec.smaller((1,) * spec.ndim) if max(spec.kernel_size) > 1 else None
        self.rbr_scale = None if point is None else make.conv_norm(*point)
        self._finish(make)

    def branches(self, x: Tensor) -> Tensor:
        """Return the sum of the branches."""
        total = self.rbr_conv[0](x)
        for conv in self.rbr_conv[1:]:
            total = total + conv(x)
        if self.rbr_scale is not None:
            total = total + self.rbr_scale(x)
        return total if self.rbr_skip is None else total + self.rbr_skip(self.ringed(x))

    def last_norms(self) -> dict[str, nn.Module]:
        """Return the norm that ends each branch."""
        convs = cast("list[ConvNorm]", list(self.rbr_conv))
        norms = {f"rbr_conv.{index}": conv.bn for index, conv in enumerate(convs)}
        if self.rbr_scale is not None:
            norms["rbr_scale"] = self.rbr_scale.bn
        return norms if self.rbr_skip is None else {**norms, "rbr_skip": self.rbr_skip}


@register_family(
    "MobileOne",
    "rbr_conv.0.conv.weight",
    parts="rbr_conv|rbr_scale|rbr_skip",
    deploy=MobileOneBlock.deploy_name,
    lone="rbr_conv.0.",
)
@register_family(
    "timm MobileOne",
    "conv_kxk.0.conv.weight",
    parts="conv_kxk|conv_scale|identity",
    deploy="reparam_conv",
    lone="conv_kxk.0.",
)
def _of_state(state: State) -> nn.Module:
    kernel, identity = state["rbr_conv.0.conv.weight"], "rbr_identity.weight" in state
    count = sum(key.startswith("rbr_conv.") and key.endswith(".conv.weight") for key in state)
    options = {"identity": identity, "num_conv_branches": count}
    return MobileOneBlock.of_kernel(kernel, *channels_of(state, kernel), **options)
