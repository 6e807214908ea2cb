"""The convolutions that plain backbones are made of, and which of them train as branches.

One definition of a backbone serves all its forms: it asks a `Units` for its convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Unpack

from torch import Tensor, nn

from refold.algebra.geometry import Size
from refold.blocks import ACBlock, BranchedBlock, DiverseBranchBlock
from refold.blocks.arguments import BlockOptions, parse
from refold.blocks.base import Activation
from refold.blocks.layers import chain
from refold.errors import InputError

Form = Literal["plain", "acb", "dbb"]
"""What the convolutions of a backbone train as."""

FORMS: tuple[Form, ...] = ("plain", "acb", "dbb")


class ConvUnit(BranchedBlock):
    """act(norm(conv)): a block of a single branch, so that it deploys as the others do.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: of the convolution.
        stride: of the convolution.
        padding: of the convolution.
        dilation: of the convolution.
        groups: of the convolution.
        activation: makes the activation; None for none.
        deploy: build the plain form.

    Examples:
        >>> unit, plain = ConvUnit(3, 8, 3), ConvUnit(3, 8, 3, deploy=True)
        >>> list(unit.state_dict())[:2], list(plain.state_dict())
        (['conv.weight', 'bn.weight'], ['conv.weight', 'conv.bias'])
    """

    deploy_name: ClassVar[str] = "conv"
    main: ClassVar[tuple[str, str]] = ("conv", "bn")

    def __init__(
        self,
        *conv: Size | str,
        activation: Activation = None,
        **options: Unpack[BlockOptions],
    ) -> None:
        spec, make = parse(BlockOptions, conv, options)
        super().__init__(spec, activation)
        self.conv = make.conv(spec)
        self.bn = make.norm(spec.out_channels, spec.ndim)
        self._finish(make)

    def branches(self, x: Tensor) -> Tensor:
        """Return the single branch."""
        return self.bn(self.conv(x))

    def last_norms(self) -> dict[str, nn.Module]:
        """Return its norm."""
        return {"conv": self.bn}


@dataclass(frozen=True)
class Units:
    """Makes the convolutions of a backbone; those of kernels 2 to 6 in its form.

    Args:
        form: what those convolutions train as.
        deploy: build the plain form.
        gamma: where the norms of branches start to scale; ACNet's recipe on CIFAR is a third.
        named: whether an "acb" unit with an activation is called `acb` inside, as the ACNet
            repository's builder does.

    Raises:
        InputError: when there is no such form.

    Examples:
        >>> unit = Units("acb")
        >>> type(unit(4, 8, 3)).__name__, type(unit(4, 8, 1)).__name__
        ('ACBlock', 'ConvUnit')

    Source: the choice of kernels is that of the authors' repositories of ACNet and DBB.
    """

    form: Form = "plain"
    deploy: bool = False
    gamma: float = 1.0
    named: bool = False

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise InputError(f"form must be one of {', '.join(FORMS)}, got {self.form!r}")

    def __call__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        *,
        act: bool = True,
    ) -> nn.Module:
        """Return a convolution with its norm, and a ReLU if wanted."""
        where = (in_channels, out_channels, kernel_size, stride, padding, 1, groups)
        activation = nn.ReLU if act else None
        if self.form == "plain" or not 1 < kernel_size < 7:
            return ConvUnit(*where, activation=activation, deploy=self.deploy)
        if self.form == "dbb":
            return DiverseBranchBlock(*where, activation=activation, deploy=self.deploy)
        named = self.named and act
        block = ACBlock(*where, activation=None if named else activation, deploy=self.deploy)
        if not self.deploy:
            block.init_gamma(self.gamma)
        return chain(acb=block, relu=nn.ReLU()) if named else block
