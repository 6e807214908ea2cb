"""The published layouts of blocks: what their keys look like, and the module that such keys fill.

Blocks register their layouts here. Channels, groups and branches are read off the tensors; what
they fold to is the engine's business. Stride and padding are in no tensor and change no weight of
the fold.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from refold.ranked import CONVS, NORMS

State = Mapping[str, Tensor]
Build = TypeVar("Build", bound=Callable[..., nn.Module])


@dataclass(frozen=True)
class Family:
    """One kind of block in one spelling.

    Args:
        label: what the layout is called.
        signs: keys, below the block's own name, that together only this block has; the first
            is the kernel whose shape the folded one has.
        parts: the children that deploying replaces, as a pattern.
        deploy: the child that replaces them.
        build: makes the empty block, in float64, of tensors in the common spelling.
        is_named: whether no other layout has a child called `deploy`.
        lone: the branch, with a dot, that may be the only one.
        fits: whether a block with these signs and this name, with a dot, is really one.
        deployed: whether a state_dict is of this layout in deploy form, where no name tells.
        size: channels and sizes of a map for the empty block, where it needs one of that size.
        is_sized: whether `build` also takes the `partition` that a model tells.
        is_kept: whether the repository's deploy form keeps the block as it trains: it is folded
            only into a model that has folded it.
        hands_on: whether the folded kernel may have more outputs: channels that are handed on.
    """

    label: str
    signs: tuple[str, ...]
    parts: str
    deploy: str
    build: Callable[..., nn.Module]
    is_named: bool = False
    lone: str = ""
    fits: Callable[[str, State], bool] = lambda prefix, state: True
    deployed: Callable[[State], bool] = lambda state: False
    size: Callable[[Any], tuple[int, ...]] | None = None
    is_sized: bool = False
    is_kept: bool = False
    hands_on: bool = False

    def owns(self, name: str) -> bool:
        """Say whether deploying replaces what has this name below the block's own."""
        return re.match(rf"({self.parts})\.", name) is not None


def _conv_norm(state: State) -> nn.Module:
    outputs, inputs, *sizes = state["conv.weight"].shape
    bias = "conv.bias" in state
    conv = CONVS[len(sizes)](inputs, outputs, tuple(sizes), bias=bias)
    norm = NORMS[len(sizes)](outputs)
    return nn.Sequential(OrderedDict(conv=conv, bn=norm)).double()


FAMILIES: list[Family] = []
"""The layouts in training form; each block adds its own with `register_family`."""

PAIR = Family("conv-bn", ("conv.weight", "bn.running_mean"), "conv|bn", "conv", _conv_norm)
"""A convolution with its norm, as the repositories of these labels name them between blocks."""

PAIRED = frozenset({"ACNet", "DBB", "RepLKNet", "RepVGGplus", "RepMLP"})
"""The layouts in which `conv` and `bn` in one module are a convolution and the norm after it."""


def register_family(
    label: str, *signs: str, parts: str, deploy: str, **traits: Any
) -> Callable[[Build], Build]:
    """Enter a layout among those that are recognised, as a decorator of what builds its block.

    See `Family` for the arguments.
    """

    def enter(build: Build) -> Build:
        FAMILIES.append(Family(label, signs, parts, deploy, build, **traits))
        return build

    return enter


def merged_names() -> tuple[str, ...]:
    """Return what the layouts call the one layer that a block's branches become."""
    return tuple(f.deploy for f in FAMILIES if not f.is_kept and f.deploy.isidentifier())
