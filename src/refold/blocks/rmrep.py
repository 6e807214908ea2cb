"""RMNet's block: RepVGG's, of whose channels some may only be handed on.

Meng et al. 2021, RMNet: Equivalently Removing Residual Connection from Networks, arXiv:2111.00687.
Parameter names follow the authors' checkpoints.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Unpack, cast

import torch
from torch import Tensor, nn

from refold.algebra.apply import pad
from refold.algebra.geometry import Size
from refold.blocks.arguments import PaddedOptions, parse
from refold.blocks.base import Activation, BranchedBlock
from refold.blocks.layers import has_identity
from refold.blocks.spec import ConvSpec
from refold.branches import register_block
from refold.checkpoint.families import State, register_family
from refold.errors import InputError


@register_block("rm")
class RMBlock(BranchedBlock):
    """act(concat(a, norm(conv KxK(x)) + norm(conv 1x1(x)) + norm(b))), with a and b the parts of x.

    The channels of `a` are reserved: training leaves them as they are, as it would leave a
    residual, and yet the whole is one KxK convolution.

    Args:
        in_channels: of the input.
        out_channels: of the output, the reserved ones included.
        kernel_size: odd on every axis.
        stride: of the convolution.
        padding: of the convolution; the 1x1 branch crops where it is smaller than half the kernel.
        dilation: of the convolution.
        groups: of the kernel and of the 1x1.
        ndim: spatial axes, 1 to 3.
        padding_mode: torch's.
        reserved: how many channels are handed on; with none it is RepVGG's block.
        identity: whether there is the branch norm(b); None for wherever there can be.
        se: whether squeeze-and-excite stands before the activation; reserved channels pass it.
        activation: makes the activation; None for none.
        deploy: build the plain form.
        device: of the tensors.
        dtype: of the tensors.

    Raises:
        GeometryError: when the branches cannot be centred in the kernel.
        InputError: when channels cannot be reserved.
        RefusedError: when the identity is asked for and cannot be.

    Examples:
        >>> block = RMBlock(8, 8, 3, padding=1, reserved=2).eval()
        >>> block.conv33.out_channels, block.bn00.num_features
        (6, 6)
        >>> x = torch.randn(1, 8, 5, 5)
        >>> before = block(x)
        >>> torch.allclose(block.fuse()(x), before, atol=1e-5), block.reparam_conv.out_channels
        (True, 8)

    Source: arXiv:2111.00687, section 4.3, and the authors' repository.
    """

    main: ClassVar[tuple[str, str]] = ("conv33", "bn33")
    after: ClassVar[tuple[str, ...]] = ("se", "activation")

    def __init__(
        self,
        *conv: Size | str,
        reserved: int = 0,
        identity: bool | None = None,
        se: bool = False,
        activation: Activation = nn.ReLU,
        **options: Unpack[PaddedOptions],
    ) -> None:
        spec, make = parse(PaddedOptions, conv, options)
        _check(spec, reserved)
        super().__init__(spec, activation)
        self.reserved = reserved
        own, passed = spec.out_channels - reserved, 0 if make.deploy else reserved
        branch = replace(spec, out_channels=own)
        small, self.crop = branch.smaller((1,) * spec.ndim)
        hidden = spec.out_channels // 16
        self.se = make.gate(spec, hidden, passed=passed) if se else None
        self.conv33, self.bn33 = make.conv(branch), make.norm(own, spec.ndim)
        self.conv11, self.bn11 = make.conv(small), make.norm(own, spec.ndim)
        self.bn00 = make.norm(own, spec.ndim) if has_identity(spec, identity) else None
        self._finish(make)

    @property
    def deploy(self) -> bool:
        """Whether the block is one convolution: of all its channels, the reserved ones too."""
        whole = self.spec.out_channels
        return super().deploy and cast(nn.Conv2d, self._conv()).out_channels == whole

    def branches(self, x: Tensor) -> Tensor:
        """Return the reserved channels beside the sum of the branches."""
        small = pad(x, self.crop, "zeros", 0.0)
        total = self.bn33(self.conv33(x)) + self.bn11(self.conv11(small))
        if self.bn00 is not None:
            total = total + self.bn00(self.ringed(x[:, self.reserved :]))
        if not self.reserved:
            return total
        return torch.cat([self.ringed(x[:, : self.reserved]), total], 1)

    def last_norms(self) -> dict[str, nn.Module]:
        """Return the norm that ends each branch."""
        norms = {"conv33": self.bn33, "conv11": self.bn11}
        return norms if self.bn00 is None else {**norms, "bn00": self.bn00}


def _check(spec: ConvSpec, reserved: int) -> None:
    """Refuse to reserve what is not there, all there is, or where the shape changes.

    Raises:
        InputError: saying which.
    """
    if not 0 <= reserved < spec.out_channels:
        raise InputError(
            f"reserved must be at least 0 and less than the {spec.out_channels} output channels, "
            f"got {reserved}"
        )
    if reserved and (not spec.keeps_shape or spec.groups > 1):
        raise InputError(
            "channels are reserved where the shape is kept, without groups; got "
            f"{spec.in_channels} -> {spec.out_channels} channels, stride {spec.stride}, groups "
            f"{spec.groups}: give reserved=0"
        )


@register_family(
    "RMNet",
    "conv33.weight",
    "bn33.running_mean",
    "conv11.weight",
    parts="conv33|bn33|conv11|bn11|bn00",
    deploy=RMBlock.deploy_name,
    hands_on=True,
)
def _of_state(state: State) -> nn.Module:
    """Return the block; with an identity branch it has as many channels out as in."""
    kernel, identity = state["conv33.weight"], "bn00.weight" in state
    own, channels = kernel.shape[:2]
    reserved = channels - own if identity else 0
    whole = kernel.new_empty(own + reserved, *kernel.shape[1:])
    return RMBlock.of_kernel(whole, channels, identity=identity, reserved=reserved)
