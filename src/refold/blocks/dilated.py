"""UniRepLKNet: a large kernel helped by small dilated ones.

Ding et al. 2024, UniRepLKNet: A Universal Perception Large-Kernel ConvNet, arXiv:2311.15599.
Parameter names follow the authors' checkpoints, where the deployed kernel keeps the name of the
large one.
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
from refold.errors import RefusedError

_BRANCHES: dict[int, tuple[tuple[int, int], ...]] = {
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    7: ((5, 1), (3, 2), (3, 3)),
    5: ((3, 1), (3, 2)),
    3: ((3, 1),),
}
"""The paper's (kernel, dilation) pairs by kernel size; it has none below 5."""

_LEAST = 5


def dilated_branches(kernel_size: int) -> tuple[tuple[int, int], ...]:
    """Return the (kernel, dilation) pairs beside a kernel: the paper's largest set that fits.

    Examples:
        >>> dilated_branches(7), dilated_branches(31) == dilated_branches(17), dilated_branches(1)
        (((5, 1), (3, 2), (3, 3)), True, ())
    """
    return next((pairs for size, pairs in _BRANCHES.items() if size <= kernel_size), ())


@register_block("dilated")
class DilatedReparamBlock(BranchedBlock):
    """norm(conv KxK) + norm(conv kxk dilated r) + ...; depthwise in the paper.

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
        pairs: (kernel, dilation) of the small kernels; the paper's for this kernel size where None.
        activation: makes the activation; None for none, as the paper has it.
        deploy: build the plain form.
        device: of the tensors.
        dtype: of the tensors.

    Raises:
        GeometryError: when a small kernel cannot be centred in the large one.

    Examples:
        >>> import torch
        >>> block = DilatedReparamBlock(4, 4, 7, padding=3, groups=4).eval()
        >>> x = torch.randn(1, 4, 8, 8)
        >>> before = block(x)
        >>> torch.allclose(block.fuse()(x), before, atol=1e-5)
        True

    Source: arXiv:2311.15599, section 3.1.
    """

    deploy_name: ClassVar[str] = "lk_origin"
    main: ClassVar[tuple[str, str]] = ("lk_origin", "origin_bn")

    def __init__(
        self,
        *conv: Size | str,
        pairs: tuple[tuple[int, int], ...] | None = None,
        activation: Activation = None,
        **options: Unpack[ConvOptions],
    ) -> None:
        spec, make = parse(ConvOptions, conv, options)
        super().__init__(spec, activation)
        self.lk_origin = make.conv(spec)
        self.origin_bn = make.norm(spec.out_channels, spec.ndim)
        long = [size for size in spec.kernel_size if size > 1] or [1]
        self.crops: dict[str, Amounts] = {}
        for kernel, step in dilated_branches(min(long)) if pairs is None else pairs:
            name = f"k{kernel}_{step}"
            size = tuple(min(kernel, k) for k in spec.kernel_size)
            gaps = tuple(step * d for d in spec.dilation)
            small, self.crops[name] = spec.smaller(size, gaps)
            self.add_module(f"dil_conv_{name}", make.conv(small))
            self.add_module(f"dil_bn_{name}", make.norm(spec.out_channels, spec.ndim))
        self._finish(make)

    def branches(self, x: Tensor) -> Tensor:
        """Return the sum of the branches."""
        total = self.origin_bn(self.lk_origin(x))
        for name, crop in self.crops.items():
            small = getattr(self, f"dil_conv_{name}")(pad(x, crop, "zeros", 0.0))
            total = total + getattr(self, f"dil_bn_{name}")(small)
        return total

    def last_norms(self) -> dict[str, nn.Module]:
        """Return the norm that ends each branch."""
        small = {name: cast(nn.Module, getattr(self, f"dil_bn_{name}")) for name in self.crops}
        return {"lk_origin": self.origin_bn, **small}

    def adopt(self, conv: nn.Module, norm: nn.Module | None, *, preserve: bool = True) -> None:
        """Take a convolution and its norm as the main branch; see `BranchedBlock.adopt`.

        Raises:
            RefusedError: when the kernel is too small for dilated ones, too.
        """
        if min(self.spec.kernel_size) < _LEAST:
            raise RefusedError(
                f"kernel {self.spec.kernel_size} has no room for dilated ones: they start at "
                f"{_LEAST}"
            )
        super().adopt(conv, norm, preserve=preserve)
