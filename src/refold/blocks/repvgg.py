"""RepVGG: a kernel, a 1x1 and an identity, each with its norm, that deploy as one kernel.

Ding et al. 2021, RepVGG: Making VGG-style ConvNets Great Again, arXiv:2101.03697. Parameter names
follow the authors' checkpoints.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Unpack

from torch import Tensor, nn

from refold.algebra.geometry import Size
from refold.blocks.arguments import ConvOptions, parse
from refold.blocks.base import Activation, BranchedBlock, channels_of
from refold.branches import register_block
from refold.checkpoint.families import State, register_family
from refold.errors import InputError


@register_block("repvgg")
class RepVGGBlock(BranchedBlock):
    """act(norm(conv KxK) + norm(conv 1x1) + norm(x)), with squeeze-and-excite if wanted.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: odd on every axis.
        stride: of the convolution.
        padding: of the convolution; the 1x1 branch crops where it is smaller than half the kernel.
        dilation: of the convolution.
        groups: of the kernel and of the 1x1.
        ndim: spatial axes, 1 to 3.
        padding_mode: torch's.
        transposed: make both convolutions transposed.
        output_padding: of a transposed convolution.
        identity: whether there is an identity branch; None for wherever there can be.
        se: where squeeze-and-excite stands.
        se_channels: its inner channels; a sixteenth before, a quarter after the activation where
            None.
        activation: makes the activation; None for none.
        deploy: build the plain form.
        device: of the tensors.
        dtype: of the tensors.

    Raises:
        GeometryError: when the branches cannot be centred in the kernel.
        RefusedError: when the identity is asked for and cannot be.
        InputError: when `se` is not one of the three.

    Examples:
        >>> import torch
        >>> block = RepVGGBlock(4, 4, 3, padding=1).eval()
        >>> x = torch.randn(1, 4, 8, 8)
        >>> before = block(x)
        >>> torch.allclose(block.fuse()(x), before, atol=1e-5), block.rbr_reparam
        (True, Conv2d(4, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1)))

    Source: arXiv:2101.03697, section 3.2.
    """

    deploy_name: ClassVar[str] = "rbr_reparam"
    main: ClassVar[tuple[str, str]] = ("rbr_dense.conv", "rbr_dense.bn")
    after: ClassVar[tuple[str, ...]] = ("se", "activation", "post_se")

    def __init__(
        self,
        *conv: Size | str,
        identity: bool | None = None,
        se: Literal["before", "after"] | None = None,
        se_channels: int | None = None,
        activation: Activation = nn.ReLU,
        **options: Unpack[ConvOptions],
    ) -> None:
        spec, make = parse(ConvOptions, conv, options)
        if se not in (None, "before", "after"):
            raise InputError(f"se must be 'before', 'after' or None, got {se!r}")
        super().__init__(spec, activation)
        before, after = (se_channels or spec.out_channels // share for share in (16, 4))
        self.se = make.gate(spec, before) if se == "before" else None
        self.post_se = make.gate(spec, after) if se == "after" else None
        self.rbr_dense = make.conv_norm(spec)
        self.rbr_1x1 = make.conv_norm(*spec.smaller((1,) * spec.ndim))
        self.rbr_identity = make.identity_norm(spec, identity)
        self._finish(make)

    def branches(self, x: Tensor) -> Tensor:
        """Return the sum of the branches."""
        total = self.rbr_dense(x) + self.rbr_1x1(x)
        return total if self.rbr_identity is None else total + self.rbr_identity(self.ringed(x))

    def last_norms(self) -> dict[str, nn.Module]:
        """Return the norm that ends each branch."""
        norms = {"rbr_dense": self.rbr_dense.bn, "rbr_1x1": self.rbr_1x1.bn}
        return norms if self.rbr_identity is None else {**norms, "rbr_identity": self.rbr_identity}


@register_family(
    "RepVGG",
    "rbr_dense.conv.weight",
    parts="rbr_dense|rbr_1x1|rbr_identity",
    deploy=RepVGGBlock.deploy_name,
    is_named=True,
)
@register_family(
    "timm RepVGG",
    "conv_kxk.conv.weight",
    "conv_1x1.conv.weight",
    parts="conv_kxk|conv_1x1|identity",
    deploy="reparam_conv",
)
def _of_state(state: State) -> nn.Module:
    kernel, identity = state["rbr_dense.conv.weight"], "rbr_identity.weight" in state
    return RepVGGBlock.of_kernel(kernel, *channels_of(state, kernel), identity=identity)
