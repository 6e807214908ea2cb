"""From the caller's name for a block to one block for one convolution."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from refold.algebra.operator import Conv
from refold.branches.registry import block_factory
from refold.errors import InputError, NotAffineError, RefusedError
from refold.transforms import equivalent_conv

Block = str | Callable[..., nn.Module]
"""A registered name, a block class (or a `functools.partial` of one), or `conv -> module`."""

Builder = Callable[[nn.Module], nn.Module]
_CLOSE = 1e-9


@runtime_checkable
class Adopting(Protocol):
    """A block that can take a trained convolution and norm as its main branch."""

    def adopt(self, conv: nn.Module, norm: nn.Module | None, *, preserve: bool = True) -> None:
        """Adopt both; with `preserve`, compute what they computed."""
        ...


def builder(block: Block) -> Builder:
    """Return what makes the block for a convolution.

    Raises:
        InputError: when `block` is neither a registered name nor callable.
    """
    if isinstance(block, str):
        return partial(construct, block_factory(block))
    if isinstance(block, type) or (isinstance(block, partial) and isinstance(block.func, type)):
        return partial(construct, block)
    if not callable(block):
        raise InputError(
            f"block must be a name, a block class or a callable conv -> module, got {block!r}"
        )
    return block


def construct(factory: Callable[..., nn.Module], conv: nn.Module) -> nn.Module:
    """Return a block with a convolution's arguments.

    Raises:
        RefusedError: when the block cannot have one of them.

    Examples:
        >>> construct(nn.Conv2d, nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1))
        Conv2d(3, 8, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))
    """
    like = cast(Any, conv)
    rank = len(like.kernel_size)
    taken = inspect.signature(factory).parameters
    bound = factory.keywords if isinstance(factory, partial) else {}
    given = {"device": like.weight.device, "dtype": like.weight.dtype, "activation": None}
    given = {name: value for name, value in given.items() if name in taken and name not in bound}
    options: dict[str, tuple[Any, Any]] = {  # and what a block without the option has
        "ndim": (rank, 2),
        "padding_mode": (like.padding_mode, "zeros"),
        "transposed": (like.transposed, False),
        "output_padding": (like.output_padding, (0,) * rank),
    }
    for name, (value, default) in options.items():
        if name in taken:
            given[name] = value
        elif value != default:
            raise RefusedError(f"the block takes no {name}, and the convolution has {value!r}")
    return factory(
        like.in_channels, like.out_channels, like.kernel_size, like.stride, like.padding,
        like.dilation, like.groups, **given
    )  # fmt: skip


def example_for(conv: nn.Module, like: Tensor) -> Tensor:
    """Return an input that a convolution accepts, without values.

    Examples:
        >>> example_for(nn.Conv2d(3, 8, 5, padding=2), torch.zeros(1)).shape
        torch.Size([1, 3, 9, 9])
    """
    shape = cast(Any, conv)
    rank = len(shape.kernel_size)
    rings = (0,) * rank if isinstance(shape.padding, str) else shape.padding
    rows = zip(shape.kernel_size, shape.dilation, rings, strict=True)
    return like.new_empty(1, shape.in_channels, *(d * k + p + 2 for k, d, p in rows))


def folded(block: nn.Module, example: Tensor) -> Conv:
    """Return the single convolution that a module equals; a bare layer equals itself.

    Raises:
        NotAffineError: when it is not affine.
        RefusedError: when it is not one convolution.

    Examples:
        >>> folded(nn.Conv2d(1, 2, 3), torch.zeros(1, 1, 5, 5)).weight.shape
        torch.Size([2, 1, 3, 3])
    """
    return equivalent_conv(nn.Sequential(block), example)


def must_compute(block: nn.Module, conv: nn.Module, path: str) -> None:
    """Check that a block computes what a convolution does.

    Raises:
        RefusedError: when it does not, or cannot be checked.

    Examples:
        >>> must_compute(  # doctest: +ELLIPSIS
        ...     nn.Sequential(nn.Conv2d(1, 1, 1)), nn.Conv2d(1, 1, 1), "stem"
        ... )
        Traceback (most recent call last):
        refold.errors.RefusedError: stem: the block does not compute ...
    """
    weight = cast(nn.Conv2d, conv).weight
    example = example_for(conv, weight)
    with torch.no_grad():
        try:
            wanted, found = folded(conv, example), folded(block, example)
        except (NotAffineError, RefusedError) as error:
            raise RefusedError(f"{path}: {error}; {_HINT}") from error
    same = (wanted.axes, wanted.groups, wanted.mode) == (found.axes, found.groups, found.mode)
    bound = max(_CLOSE, 64 * torch.finfo(weight.dtype).eps)
    same = same and _close(wanted.weight, found.weight, bound)
    if not same or not _close(_bias(wanted), _bias(found), bound):
        raise RefusedError(f"{path}: the block does not compute what the convolution did; {_HINT}")


_HINT = "give it an `adopt` method, let the callable copy the weights, or pass preserve=False"


def _bias(conv: Conv) -> Tensor:
    return conv.weight.new_zeros(1) if conv.bias is None else conv.bias


def _close(wanted: Tensor, found: Tensor, bound: float) -> bool:
    wanted, found = wanted.detach(), found.detach()
    scale = max(float(wanted.abs().max()), float(found.abs().max()))
    return bool(((wanted - found).abs() <= bound * scale).all())
