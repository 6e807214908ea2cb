"""What all blocks share: one affine part that trains as branches and deploys as one convolution.

A block says what its branches are and nothing about how they fold: the engine reads its forward
like anyone else's.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as NormLayer

from refold.algebra.apply import pad
from refold.blocks.arguments import written_out
from refold.blocks.layers import Maker
from refold.blocks.recompute import recomputed
from refold.blocks.spec import ConvSpec
from refold.errors import RefusedError
from refold.graph import NEW_CONV, like_of, lower
from refold.transforms import equivalent_conv

Activation = Callable[[], nn.Module] | None
"""Makes a block's activation, such as `nn.ReLU`; None for no activation."""

_PLAIN: dict[str, nn.Module] = {}
"""The convolutions that blocks became on `meta`, where they have no values, by the blocks' text."""


class BranchedBlock(nn.Module):
    """A convolution that trains as several branches; a subclass writes `branches`.

    Args:
        spec: the convolution that the branches add up to.
        activation: what follows it.

    Attributes:
        deploy_name: what the one convolution is called.
        main: where the main branch has its convolution and its norm.
        after: the children that follow the sum, in order; deploying keeps them.
        recompute: keep the input alone in training, and compute the branches again in the backward
            pass; see `recompute_branches`.
    """

    __signature__: ClassVar[inspect.Signature]
    deploy_name: ClassVar[str] = NEW_CONV
    main: ClassVar[tuple[str, str]]
    after: ClassVar[tuple[str, ...]] = ("activation",)
    recompute: bool = False

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Give `inspect`, `help` and `expand` the constructor's whole signature."""
        super().__init_subclass__(**keywords)
        cls.__signature__ = written_out(cls.__init__)

    def __init__(self, spec: ConvSpec, activation: Activation) -> None:
        super().__init__()
        self.spec = spec
        self.activation = None if activation is None else activation()

    @classmethod
    def of_kernel(cls, kernel: Tensor, channels: int, groups: int = 1, **options: Any) -> Self:
        """Return an empty block in float64 around a published kernel, centred and of stride 1.

        Args:
            kernel: has the shape of the main convolution's weight.
            channels: of the input.
            groups: of the convolution.
            options: the block's own.
        """
        sizes = tuple(kernel.shape[2:])
        half = tuple(size // 2 for size in sizes)
        make: Any = cls
        return make(
            channels, kernel.shape[0], sizes, padding=half, groups=groups, ndim=len(sizes),
            activation=None, device="cpu", dtype=torch.double, **options,
        )  # fmt: skip

    # -- what it computes -------------------------------------------------------------------------

    def branches(self, x: Tensor) -> Tensor:
        """Return the sum of the branches: the affine part, as it trains."""
        raise NotImplementedError

    @property
    def deploy(self) -> bool:
        """Whether the block is one convolution already, whoever folded it."""
        return self.main[1].partition(".")[0] not in self._modules

    def linear(self, x: Tensor) -> Tensor:
        """Return the affine part, in training or deploy form."""
        if self.deploy:
            return self._conv()(x)
        branches = self.computed()
        if self.recompute and self.training and torch.is_grad_enabled():
            return recomputed(self, branches, x)
        return branches(x)

    def computed(self) -> Callable[[Tensor], Tensor]:
        """Return what computes the sum of the branches in this call."""
        return self.branches

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's value; shape as the convolution's."""
        y = self.linear(x)
        for name in self.after:
            follower = getattr(self, name, None)
            y = y if follower is None else follower(y)
        return y

    def ringed(self, x: Tensor) -> Tensor:
        """Return what an identity branch reads: the map in the size of the convolution's."""
        return pad(x, self.spec.identity_ring, self.spec.padding_mode, 0.0)

    # -- how its branches start -------------------------------------------------------------------

    def last_norms(self) -> dict[str, nn.Module]:
        """Return the norm that ends each branch, the main one's first; empty if there are none."""
        return {}

    def init_gamma(self, value: float) -> None:
        """Set the scale of every branch's last norm, where it has one."""
        for norm in self.last_norms().values():
            if getattr(norm, "weight", None) is not None:
                nn.init.constant_(cast(Tensor, norm.weight), value)

    def single_init(self) -> None:
        """Start as the main convolution with its norm: all other branches scaled to zero.

        Source: DBB, arXiv:2103.13425, section 4.4.
        """
        self.init_gamma(0.0)
        for norm in list(self.last_norms().values())[:1]:
            nn.init.constant_(cast(Tensor, norm.weight), 1.0)

    def adopt(self, conv: nn.Module, norm: nn.Module | None, *, preserve: bool = True) -> None:
        """Take a convolution, and the norm after it, as the main branch: the modules themselves.

        Args:
            conv: a convolution of this block's shape.
            norm: its norm, whose `eps` and `momentum` the other branches' norms take over; None
                for none.
            preserve: start all other branches at zero, so that the block computes norm(conv(x)),
                in training mode too.

        Raises:
            RefusedError: when there is neither norm nor bias: the branches' norms leave a bias.
        """
        if norm is None and conv._parameters.get("bias") is None:
            raise RefusedError(
                "it has neither a norm nor a bias, which the norms of the branches need"
            )
        if preserve:
            self.init_gamma(0.0)
        self._take(conv, norm)

    def _take(self, conv: nn.Module, norm: nn.Module | None) -> None:
        if norm is not None:
            like = cast(NormLayer, norm)
            for other in self.modules():
                if isinstance(other, NormLayer):
                    other.eps, other.momentum = like.eps, like.momentum
        for path, module in zip(self.main, (conv, norm or nn.Identity()), strict=True):
            above, _, name = path.rpartition(".")
            if name:  # a block may compute its kernel instead
                self.get_submodule(above)._modules[name] = module

    # -- the plain form ---------------------------------------------------------------------------

    def get_equivalent_kernel_bias(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias of the equal convolution, differentiable, in the block's dtype.

        Running statistics stand for batch statistics in training mode too. See `equivalent_conv`
        for what gets no gradient.

        Shape:
            weight as the plain convolution's; bias (out_channels,).
        """
        if self.deploy:
            plain = cast(nn.Conv2d, self._conv())
            return plain.weight, cast(Tensor, plain.bias)
        conv, dtype = equivalent_conv(_AffinePart(self), self._example()), self._like().dtype
        weight = conv.weight.to(dtype)
        zeros = weight.new_zeros(self.spec.out_channels)
        return weight, zeros if conv.bias is None else conv.bias.to(dtype)

    def switch_to_deploy(self) -> None:
        """Replace the branches by the one convolution they add up to.

        Raises:
            RefusedError: in training mode, or when a folded value does not fit the block's
                precision.
        """
        if self.deploy:
            return
        if self.training:
            raise RefusedError(
                f"{type(self).__name__} is in training mode, where norms use the batch; "
                "call eval() first"
            )
        self._become(self._folded())

    def reparameterize(self) -> None:
        """Do as `switch_to_deploy`: the name that MobileOne's walkers call."""
        self.switch_to_deploy()

    def fuse(self) -> Self:
        """Do as `switch_to_deploy` and return the block: the name that timm's walker calls."""
        self.switch_to_deploy()
        return self

    def extra_repr(self) -> str:
        """Return the convolution's arguments for `print(model)`."""
        spec = self.spec
        text = f"{spec.in_channels}, {spec.out_channels}, kernel_size={spec.kernel_size}"
        return f"{text}, stride={spec.stride}, padding={spec.padding}, groups={spec.groups}"

    # -- building ---------------------------------------------------------------------------------

    def _finish(self, make: Maker) -> None:
        """End construction: a block to be deployed has its branches on `meta`, folded there."""
        if not make.deploy:
            return
        self.eval()
        key = f"{self.spec} {self._like().dtype} {self}"  # a network has many blocks of one make
        if key not in _PLAIN:
            _PLAIN[key] = self._folded()
        conv = copy.deepcopy(_PLAIN[key]).to_empty(device=make.device or torch.get_default_device())
        cast(Any, conv).reset_parameters()
        self._become(conv)
        self.train()

    def _folded(self) -> nn.Module:
        with torch.no_grad():
            conv = equivalent_conv(_AffinePart(self), self._example())
            module = lower(conv, like_of(self._branch_parameters(), self.spec.ndim))
        return module.train(self.training)

    def _become(self, conv: nn.Module) -> None:
        for tables in (self._modules, self._parameters, self._buffers):
            for name in [name for name in tables if name not in self.after]:
                delattr(self, name)
        self.add_module(self.deploy_name, conv)

    def _conv(self) -> nn.Module:
        names = (self.deploy_name, NEW_CONV)  # the engine numbers one that it folds again
        held = (child for name, child in self._modules.items() if name.startswith(names))
        return cast(nn.Module, next(held))

    def _branch_parameters(self) -> list[Tensor]:
        return [p for name, p in self.named_parameters() if name.split(".")[0] not in self.after]

    def _like(self) -> Tensor:
        return self._branch_parameters()[0]

    def _example(self) -> Tensor:
        spec, like = self.spec, self._like()
        rows = zip(spec.kernel_size, spec.dilation, spec.padding, strict=True)
        return like.new_empty(1, spec.in_channels, *(d * k + p + 2 for k, d, p in rows))


class _AffinePart(nn.Module):
    """A block without what follows its sum."""

    def __init__(self, block: BranchedBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block.branches(x)


def recompute_branches(network: nn.Module, wanted: bool = True) -> int:
    """Have every block of a network compute its branches again in the backward pass.

    It takes less memory and more time, and changes no number.

    Args:
        network: any module with blocks of refold in it.
        wanted: False keeps all values again.

    Returns:
        How many blocks it has.

    Examples:
        >>> from refold import blocks
        >>> recompute_branches(nn.Sequential(blocks.RepVGGBlock(4, 4, 3, padding=1), nn.ReLU()))
        1
    """
    blocks = [module for module in network.modules() if isinstance(module, BranchedBlock)]
    for block in blocks:
        block.recompute = wanted
    return len(blocks)


def channels_of(state: Mapping[str, Tensor], kernel: Tensor) -> tuple[int, int]:
    """Return a published block's input channels and groups.

    Without an identity branch any groups give the same sum.

    Raises:
        ValueError: when the identity branch and the kernel do not fit together.
    """
    norm = state.get("rbr_identity.weight")
    per_group = kernel.shape[1]
    if norm is None:
        return per_group, 1
    if len(norm) % per_group:
        raise ValueError(
            f"its identity branch has {len(norm)} channels, no multiple of the kernel's {per_group}"
        )
    return len(norm), len(norm) // per_group
