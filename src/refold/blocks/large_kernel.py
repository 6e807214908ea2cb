"""RepLKNet: a very large kernel helped by a small one.

Ding et al. 2022, Scaling Up Your Kernels to 31x31: Revisiting Large Kernel Design in CNNs,
arXiv:2203.06717. Parameter names follow the authors' checkpoints.
"""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from refold.algebra.geometry import Size
from refold.blocks.arguments import ConvOptions, parse
from refold.blocks.base import Activation, BranchedBlock
from refold.blocks.layers import Maker, chain
from refold.blocks.spec import ConvSpec
from refold.branches import register_block
from refold.checkpoint.families import State, register_family


@register_block("large_kernel")
class LargeKernelBlock(BranchedBlock):
    """norm(conv KxK) + norm(conv kxk) with k much smaller than K; depthwise in the paper.

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
        small_kernel: k; on an axis where K is smaller, K.
        activation: makes the activation; None for none, as the paper has it.
        deploy: build the plain form.
        device: of the tensors.
        dtype: of the tensors.

    Raises:
        GeometryError: when the small kernel cannot be centred in the large one.

    Examples:
        >>> block = LargeKernelBlock(4, 4, 13, padding=6, groups=4).eval()
        >>> x = torch.randn(1, 4, 16, 16)
        >>> before = block(x)
        >>> torch.allclose(block.fuse()(x), before, atol=1e-5)
        True

    Source: arXiv:2203.06717, section 3 (guideline 3).
    """

    deploy_name: ClassVar[str] = "lkb_reparam"
    main: ClassVar[tuple[str, str]] = ("lkb_origin.conv", "lkb_origin.bn")

    def __init__(
        self,
        *conv: Size | str,
        small_kernel: int = 5,
        activation: Activation = None,
        **options: Unpack[ConvOptions],
    ) -> None:
        spec, make = parse(ConvOptions, conv, options)
        super().__init__(spec, activation)
        self.lkb_origin = make.conv_norm(spec)
        small = tuple(min(small_kernel, size) for size in spec.kernel_size)
        self.small_conv = make.conv_norm(*spec.smaller(small))
        self._finish(make)

    def branches(self, x: Tensor) -> Tensor:
        """Return the sum of the branches."""
        return self.lkb_origin(x) + self.small_conv(x)

    def last_norms(self) -> dict[str, nn.Module]:
        """Return the norm that ends each branch."""
        return {"lkb_origin": self.lkb_origin.bn, "small_conv": self.small_conv.bn}


@register_family(
    "RepLKNet",
    "lkb_origin.conv.weight",
    parts="lkb_origin|small_conv",
    deploy=LargeKernelBlock.deploy_name,
    is_named=True,
    lone="lkb_origin.",
)
def _of_state(state: State) -> nn.Module:
    kernel, small = state["lkb_origin.conv.weight"], state.get("small_conv.conv.weight")
    outputs, inputs, *sizes = kernel.shape
    if small is None:  # RepLKNet-XL has large kernels alone
        spec = ConvSpec.of(inputs, outputs, sizes, ndim=len(sizes))
        return chain(lkb_origin=Maker("cpu", torch.double).conv_norm(spec))
    return LargeKernelBlock.of_kernel(kernel, inputs, small_kernel=max(small.shape[2:]))
