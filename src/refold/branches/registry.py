"""Train-time blocks by name: what `expand` resolves `block="dbb"` through.

Blocks stand in a higher layer and enter themselves here when `refold.blocks` is imported, so that
nobody below has to know them; a block of yours enters in the same way and is then their equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from refold.errors import InputError

BlockFactory = Callable[..., nn.Module]
"""Called with a convolution's arguments: (in_channels, out_channels, kernel_size, stride, ...)."""

Factory = TypeVar("Factory", bound=BlockFactory)
_BLOCKS: dict[str, BlockFactory] = {}


def register_block(name: str) -> Callable[[Factory], Factory]:
    """Enter a block class or factory under a name, as a decorator.

    Raises:
        InputError: when the name is taken by another block.

    Examples:
        >>> @register_block("doctest_block")
        ... class Block(nn.Module): ...
        >>> block_factory("doctest_block") is Block
        True
        >>> del _BLOCKS["doctest_block"]
    """

    def enter(factory: Factory) -> Factory:
        taken = _BLOCKS.setdefault(name, factory)
        if taken is not factory:
            raise InputError(f"a block named {name!r} exists ({taken!r}); choose another name")
        return factory

    return enter


def block_factory(name: str) -> BlockFactory:
    """Return the block of a name.

    Raises:
        InputError: when there is none; the message lists those there are.
    """
    if name not in _BLOCKS:
        raise InputError(f"there is no block {name!r}; the blocks are {', '.join(list_blocks())}")
    return _BLOCKS[name]


def list_blocks() -> list[str]:
    """Return the names of all blocks, sorted."""
    return sorted(_BLOCKS)
