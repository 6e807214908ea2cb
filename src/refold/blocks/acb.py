"""ACNet: a square kernel with one flat kernel along each axis, which strengthen its skeleton.

Ding et al. 2019, ACNet: Strengthening the Kernel Skeletons for Powerful CNN via Asymmetric
Convolution Blocks, arXiv:1908.03930. Parameter names follow the authors' checkpoints; the
activation stands outside the block.
"""

from __future__ import annotations

from typing import ClassVar, Unpack, cast

from torch import Tensor, nn

from refold.algebra.apply import pad
from refold.algebra.geometry import Size
from refold.blocks.arguments import ConvOptions, parse
from refold.blocks.base import Activation, BranchedBlock
from refold.blocks.spec import Amounts
from refold.branches import register_block
from refold.checkpoint.families import State, register_family

_AXES = ("dep", "ver", "hor")


@register_block("acb")
class ACBlock(BranchedBlock):
    """norm(conv KxK) + norm(conv Kx1) + norm(conv 1xK); along one axis in 1-D, along three in 3-D.

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
        activation: makes the activation; None for none, as the paper has it.
        deploy: build the plain form.
        device: of the tensors.
        dtype: of the tensors.

    Raises:
        GeometryError: when the flat kernels cannot be centred in the square one.

    Examples:
        >>> import torch
        >>> block = ACBlock(4, 8, 3, padding=1).eval()
        >>> x = torch.randn(1, 4, 8, 8)
        >>> before = block(x)
        >>> torch.allclose(block.fuse()(x), before, atol=1e-5)
        True

    Source: arXiv:1908.03930, section 3.3.
    """

    deploy_name: ClassVar[str] = "fused_conv"
    main: ClassVar[tuple[str, str]] = ("square_conv", "square_bn")

    def __init__(
        self,
        *conv: Size | str,
        activation: Activation = None,
        **options: Unpack[ConvOptions],
    ) -> None:
        spec, make = parse(ConvOptions, conv, options)
        super().__init__(spec, activation)
        self.square_conv = make.conv(spec)
        self.square_bn = make.norm(spec.out_channels, spec.ndim)
        self.crops: dict[str, Amounts] = {}
        for axis, name in enumerate(_AXES[-spec.ndim :]):
            kernel = tuple(size if at == axis else 1 for at, size in enumerate(spec.kernel_size))
            flat, self.crops[name] = spec.smaller(kernel)
            self.add_module(f"{name}_conv", make.conv(flat))
            self.add_module(f"{name}_bn", make.norm(spec.out_channels, spec.ndim))
        self._finish(make)

    def branches(self, x: Tensor) -> Tensor:
        """Return the sum of the branches."""
        total = self.square_bn(self.square_conv(x))
        for name, crop in self.crops.items():
            flat = getattr(self, f"{name}_conv")(pad(x, crop, "zeros", 0.0))
            total = total + getattr(self, f"{name}_bn")(flat)
        return total

    def last_norms(self) -> dict[str, nn.Module]:
        """Return the norm that ends each branch."""
        flat = {name: cast(nn.Module, getattr(self, f"{name}_bn")) for name in self.crops}
        return {"square": self.square_bn, **flat}


@register_family(
    "ACNet",
    "square_conv.weight",
    parts="(square|dep|ver|hor)_(conv|bn)",
    deploy=ACBlock.deploy_name,
    is_named=True,
)
def _of_state(state: State) -> nn.Module:
    kernel = state["square_conv.weight"]
    return ACBlock.of_kernel(kernel, kernel.shape[1])
