"""Recognise blocks and layouts in the keys of a state_dict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from refold.checkpoint.families import FAMILIES, PAIR, PAIRED, Family
from refold.checkpoint.names import is_folded_in_place, is_repmlpnet, is_timm_net
from refold.graph import NEW_CONV

_ENGINE = re.compile(rf"(^|\.){NEW_CONV}(_\d+)?\.weight$")
_STATISTIC = re.compile(r"(^|\.)running[12]\.(running_mean|running_var|num_batches_tracked)$")
_PLUS = re.compile(r"stage\w+_aux\.|stage\d(_\w+)?\.blocks\.|.*\.post_se\.")


@dataclass(frozen=True)
class TrainBlock:
    """A block in training form, found in a state_dict.

    Args:
        family: its kind.
        prefix: its name with the dot that follows; empty for the whole network.
        keys: those of its keys that folding replaces.
        options: what the model says of the block and no key tells.
    """

    family: Family
    prefix: str
    keys: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def deploy_keys(self) -> tuple[str, str]:
        """The names of the folded weight and bias."""
        stem = f"{self.prefix}{self.family.deploy}."
        return stem + "weight", stem + "bias"


@dataclass(frozen=True)
class Told:
    """What a model says of its modules and no state_dict does.

    Args:
        paired: names, with a dot, of modules whose `bn` follows their `conv`.
        partitions: sizes of the maps that modules of RepMLP flatten, by name, with a dot.
    """

    paired: frozenset[str] = frozenset()
    partitions: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])


def train_blocks(state: Mapping[str, Tensor], told: Told | None = None) -> list[TrainBlock]:
    """Return the blocks in training form, a convolution with its norm being the smallest.

    Args:
        state: the weights.
        told: what the model says that they are for; with it, blocks that only some models fold
            are among those returned, and one may hold another.
    """
    families = [family for family in FAMILIES if told is not None or not family.is_kept]
    found = [block for family in families for block in _blocks(family, state)]
    taken = {key for block in found if not block.family.is_kept for key in block.keys}
    pairs = _blocks(PAIR, {key: tensor for key, tensor in state.items() if key not in taken})
    everywhere = not PAIRED.isdisjoint(layouts(state))
    told = told or Told()
    found = [_sized(block, told) for block in found]
    return found + [pair for pair in pairs if everywhere or pair.prefix in told.paired]


def _sized(block: TrainBlock, told: Told) -> TrainBlock:
    size = told.partitions.get(block.prefix) if block.family.is_sized else None
    return block if size is None else replace(block, options={"partition": size})


def _blocks(family: Family, state: Mapping[str, Tensor]) -> list[TrainBlock]:
    sign = family.signs[0]
    prefixes = [key[: -len(sign)] for key in state if key == sign or key.endswith(f".{sign}")]
    owned = {p: list[str]() for p in prefixes if _is_train(family, p, state)}
    for key in state if owned else ():
        parts = key.split(".")
        for index in range(len(parts)):
            prefix = ".".join([*parts[:index], ""])
            if prefix in owned and family.owns(key[len(prefix) :]):
                owned[prefix].append(key)
    return [TrainBlock(family, prefix, tuple(own)) for prefix, own in owned.items()]


def _is_train(family: Family, prefix: str, state: Mapping[str, Tensor]) -> bool:
    folded = family.lone and is_folded_in_place(prefix + family.lone, state)
    signed = all(prefix + sign in state for sign in family.signs)
    return not folded and signed and family.fits(prefix, state)


def is_statistic(key: str) -> bool:
    """Say whether a key is of what RMNet's residuals log: the values of norms without weights."""
    return bool(_STATISTIC.search(key))


def layouts(state: Mapping[str, Tensor]) -> list[str]:
    """Return the known layouts that the keys belong to, usually one.

    Examples:
        >>> import torch
        >>> layouts({"stage0.rbr_reparam.weight": torch.zeros(4, 3, 3, 3)})
        ['RepVGG']
    """
    found = [f.label for f in FAMILIES if f.deployed(state) or _blocks(f, state)]
    names = {part for key in state for part in key.split(".")}
    found += [f.label for f in FAMILIES if f.is_named and f.deploy in names]
    found += ["RMNet"] if any(map(is_statistic, state)) else []
    kernels = [tensor for key, tensor in state.items() if _ENGINE.search(key)]
    if kernels and not found:
        pointwise = any(kernel.shape[2:].numel() == 1 for kernel in kernels)
        if is_timm_net(state):
            found.append("timm MobileOne" if pointwise else "timm RepVGG")
        else:  # this library's name for every block's one convolution is MobileOne's too
            found.append("MobileOne" if pointwise else "refold")
    plus = "RepVGG" in found and any(_PLUS.match(key) for key in state)
    longer = {"RepVGG": "RepVGGplus"} if plus else {}
    longer |= {"RepMLP": "RepMLPNet"} if is_repmlpnet(state) else {}
    return [longer.get(label, label) for label in dict.fromkeys(found)]
