"""QARepVGG: RepVGG made to survive quantisation, with one norm after the sum.

Chu et al. 2022, Make RepVGG Greater Again: A Quantization-aware Approach, arXiv:2212.01593.
Parameter names follow the authors'.
"""

from __future__ import annotations

from typing import ClassVar, Unpack, cast

import torch
from torch import Tensor, nn

from refold.algebra.apply import pad
from refold.algebra.geometry import Size
from refold.blocks.arguments import ConvOptions, parse
from refold.blocks.base import Activation, BranchedBlock
from refold.blocks.layers import has_identity
from refold.branches import register_block


@register_block("qarepvgg")
class QARepVGGBlock(BranchedBlock):
    """act(norm(norm(conv KxK) + conv 1x1 + x)): the 1x1 and the identity have no norm of their own.

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
        identity: whether there is an identity branch; None for wherever there can be.
        activation: makes the activation; None for none.
        deploy: build the plain form.
        device: of the tensors.
        dtype: of the tensors.

    Raises:
        GeometryError: when the branches cannot be centred in the kernel.
        RefusedError: when the identity is asked for and cannot be.

    Examples:
        >>> block = QARepVGGBlock(4, 4, 3, padding=1).eval()
        >>> x = torch.randn(1, 4, 8, 8)
        >>> before = block(x)
        >>> torch.allclose(block.fuse()(x), before, atol=1e-5)
        True

    Source: arXiv:2212.01593, section 3.3.
    """

    deploy_name: ClassVar[str] = "rbr_reparam"
    main: ClassVar[tuple[str, str]] = ("rbr_dense.conv", "bn")

    def __init__(
        self,
        *conv: Size | str,
        identity: bool | None = None,
        activation: Activation = nn.ReLU,
        **options: Unpack[ConvOptions],
    ) -> None:
        spec, make = parse(ConvOptions, conv, options)
        super().__init__(spec, activation)
        self.rbr_dense = make.conv_norm(spec)
        point, self.crop = spec.smaller((1,) * spec.ndim)
        self.rbr_1x1 = make.conv(point)
        self.has_identity = has_identity(spec, identity)
        self.bn = make.norm(spec.out_channels, spec.ndim)
        self._finish(make)

    def branches(self, x: Tensor) -> Tensor:
        """Return the norm of the sum of the branches."""
        total = self.rbr_dense(x) + self.rbr_1x1(pad(x, self.crop, "zeros", 0.0))
        return self.bn(total + self.ringed(x) if self.has_identity else total)

    def last_norms(self) -> dict[str, nn.Module]:
        """Return the norm of the main branch; the others have none."""
        return {"rbr_dense": self.rbr_dense.bn}

    def adopt(self, conv: nn.Module, norm: nn.Module | None, *, preserve: bool = True) -> None:
        """Take a convolution into the main branch, and its norm as the one after the sum.

        To preserve, the main branch loses its own norm, behind which batch statistics would differ,
        and its kernel gives way to what the other branches add.
        """
        inner = nn.Identity() if preserve or norm is None else self.rbr_dense.bn
        self._take(conv, norm)
        self.rbr_dense.bn, after = inner, self.bn
        if preserve:
            self.bn = nn.Identity()
            main = cast(nn.Conv2d, conv)
            with torch.no_grad():
                extra = self.get_equivalent_kernel_bias()[0] - main.weight
                main.weight.sub_(extra)
            self.bn = after
