"""The blocks of every known layout: what their keys look like, and the module that such keys fill.

Channels, groups and branches are read off the tensors here; what they fold to is the engine's
business. Stride and padding are in no tensor and change no weight of the fold.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from refold.branches import block_factory
from refold.ranked import CONVS, NORMS

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Family:
    """One kind of block in one spelling.

    Args:
        label: what the layout is called.
        signs: keys, below the block's own name, that together only such a block has; the first
            is the kernel whose shape the folded one has.
        parts: the children that deploying replaces, as a pattern.
        deploy: the child that replaces them.
        build: makes the empty block, in float64, of tensors in the common spelling.
        lone: the branch, with a dot, that such a block may consist of.
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


def _block(name: str, kernel: Tensor, channels: int, groups: int, **options: Any) -> nn.Module:
    sizes = tuple(kernel.shape[2:])
    half = tuple(size // 2 for size in sizes)
    arguments = (channels, kernel.shape[0], sizes, 1, half, 1, groups)
    place: dict[str, Any] = {"ndim": len(sizes), "device": "cpu", "dtype": torch.double}
    return block_factory(name)(*arguments, activation=None, **place, **options)


def _channels(state: State, kernel: Tensor) -> tuple[int, int]:
    """Return input channels and groups; without an identity branch any groups give the same sum."""
    norm = state.get("rbr_identity.weight")
    per_group = kernel.shape[1]
    if norm is None:
        return per_group, 1
    if len(norm) % per_group:
        raise ValueError(
            f"its identity branch has {len(norm)} channels, no multiple of the kernel's {per_group}"
        )
    return len(norm), len(norm) // per_group


def _repvgg(state: State) -> nn.Module:
    kernel, identity = state["rbr_dense.conv.weight"], "rbr_identity.weight" in state
    return _block("repvgg", kernel, *_channels(state, kernel), identity=identity)


def _mobileone(state: State) -> nn.Module:
    kernel, identity = state["rbr_conv.0.conv.weight"], "rbr_identity.weight" in state
    count = sum(key.startswith("rbr_conv.") and key.endswith(".conv.weight") for key in state)
    channels = _channels(state, kernel)
    return _block("mobileone", kernel, *channels, identity=identity, num_conv_branches=count)


def _rm(state: State) -> nn.Module:
    """Return RMNet's block; with an identity branch it has as many channels out as in."""
    kernel, identity = state["conv33.weight"], "bn00.weight" in state
    own, channels = kernel.shape[:2]
    reserved = channels - own if identity else 0
    shape = kernel.new_empty(own + reserved, *kernel.shape[1:])
    return _block("rm", shape, channels, 1, identity=identity, reserved=reserved)


def _acb(state: State) -> nn.Module:
    kernel = state["square_conv.weight"]
    return _block("acb", kernel, kernel.shape[1], 1)


def _dbb(state: State) -> nn.Module:
    kernel, branch = state["dbb_origin.conv.weight"], "dbb_1x1_kxk."
    first = "idconv1" if f"{branch}idconv1.weight" in state else "conv1"
    inner, per_group = state[f"{branch}{first}.weight"].shape[:2]
    groups, rest = divmod(inner, state[f"{branch}conv2.weight"].shape[1])
    if rest or not groups:
        raise ValueError(
            f"{branch}{first}.weight gives {inner} channels and {branch}conv2.weight reads "
            f"{state[f'{branch}conv2.weight'].shape[1]} a group: they tell no number of groups"
        )
    return _block("dbb", kernel, per_group * groups, groups, internal_channels=inner)


def _large_kernel(state: State) -> nn.Module:
    kernel, small = state["lkb_origin.conv.weight"], state.get("small_conv.conv.weight")
    if small is None:  # RepLKNet-XL has large kernels alone
        return nn.Sequential(OrderedDict(lkb_origin=_conv_norm_of(kernel, bias=False)))
    return _block("large_kernel", kernel, kernel.shape[1], 1, small_kernel=max(small.shape[2:]))


def _conv_norm(state: State) -> nn.Module:
    return _conv_norm_of(state["conv.weight"], bias="conv.bias" in state)


def _conv_norm_of(kernel: Tensor, *, bias: bool) -> nn.Sequential:
    outputs, inputs, *sizes = kernel.shape
    conv = CONVS[len(sizes)](inputs, outputs, tuple(sizes), bias=bias)
    norm = NORMS[len(sizes)](outputs)
    return nn.Sequential(OrderedDict(conv=conv, bn=norm)).double()


_REPVGG = "rbr_dense|rbr_1x1|rbr_identity"
_MOBILEONE = "rbr_conv|rbr_scale|rbr_skip"
_ACB = "(square|dep|ver|hor)_(conv|bn)"
_RM = "conv33|bn33|conv11|bn11|bn00"
_DBB = "dbb_origin|dbb_1x1|dbb_avg|dbb_1x1_kxk"

FAMILIES = [
    Family("RepVGG", ("rbr_dense.conv.weight",), _REPVGG, "rbr_reparam", _repvgg),
    Family(
        "MobileOne",
        ("rbr_conv.0.conv.weight",),
        _MOBILEONE,
        "reparam_conv",
        _mobileone,
        "rbr_conv.0.",
    ),
    Family("ACNet", ("square_conv.weight",), _ACB, "fused_conv", _acb),
    Family("DBB", ("dbb_origin.conv.weight",), _DBB, "dbb_reparam", _dbb),
    Family(
        "RepLKNet",
        ("lkb_origin.conv.weight",),
        "lkb_origin|small_conv",
        "lkb_reparam",
        _large_kernel,
        "lkb_origin.",
    ),
    Family(
        "RMNet",
        ("conv33.weight", "bn33.running_mean", "conv11.weight"),
        _RM,
        "reparam_conv",
        _rm,
        hands_on=True,
    ),
    Family(
        "timm RepVGG",
        ("conv_kxk.conv.weight", "conv_1x1.conv.weight"),
        "conv_kxk|conv_1x1|identity",
        "reparam_conv",
        _repvgg,
    ),
    Family(
        "timm MobileOne",
        ("conv_kxk.0.conv.weight",),
        "conv_kxk|conv_scale|identity",
        "reparam_conv",
        _mobileone,
        "conv_kxk.0.",
    ),
]
"""All that train as branches; blocks in higher layers add theirs with `register_family`."""

PAIR = Family("conv-bn", ("conv.weight", "bn.running_mean"), "conv|bn", "conv", _conv_norm)
"""A convolution with its norm, as the repositories of these labels name them between blocks."""

PAIRED = frozenset({"ACNet", "DBB", "RepLKNet", "RepVGGplus", "RepMLP"})
"""The layouts in which `conv` and `bn` in one module are a convolution and the norm after it."""


def register_family(family: Family) -> None:
    """Add a kind of block to those that are recognised."""
    FAMILIES.append(family)
