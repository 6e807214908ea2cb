"""Recognise blocks and layouts in the keys of a state_dict."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from refold.checkpoint.families import FAMILIES, PAIR, PAIRED, Family
from refold.checkpoint.names import is_folded_in_place, is_timm_net

_DEPLOYED = {
    "rbr_reparam": "RepVGG",
    "fused_conv": "ACNet",
    "dbb_reparam": "DBB",
    "lkb_reparam": "RepLKNet",
}
_ENGINE = re.compile(r"(^|\.)reparam_conv(_\d+)?\.weight$")
_STATISTIC = re.compile(r"(^|\.)running[12]\.(running_mean|running_var|num_batches_tracked)$")
_PLUS = re.compile(r"stage\w+_aux\.|stage\d(_\w+)?\.blocks\.|.*\.post_se\.")


@dataclass(frozen=True)
class TrainBlock:
    """A block in training form, found in a state_dict.

    Args:
        family: its kind.
        prefix: its name with the dot that follows; empty for the whole network.
        keys: those of its keys that folding replaces.
    """

    family: Family
    prefix: str
    keys: tuple[str, ...]

    @property
    def deploy_keys(self) -> tuple[str, str]:
        """The names of the folded weight and bias."""
        stem = f"{self.prefix}{self.family.deploy}."
        return stem + "weight", stem + "bias"


def train_blocks(state: Mapping[str, Tensor], paired: Container[str] = ()) -> list[TrainBlock]:
    """Return the blocks in training form, a convolution with its norm being the smallest.

    Args:
        state: the weights.
        paired: names, with a dot, of modules whose `bn` is known to follow their `conv`; in some
            layouts it always does.
    """
    found = [block for family in FAMILIES for block in _blocks(family, state)]
    taken = {key for block in found for key in block.keys}
    pairs = _blocks(PAIR, [key for key in state if key not in taken])
    everywhere = not PAIRED.isdisjoint(layouts(state))
    return found + [pair for pair in pairs if everywhere or pair.prefix in paired]


def _blocks(family: Family, keys: Iterable[str]) -> list[TrainBlock]:
    names = set(keys)
    sign = family.signs[0]
    prefixes = [key[: -len(sign)] for key in keys if key == sign or key.endswith(f".{sign}")]
    owned = {p: list[str]() for p in prefixes if _is_train(family, p, names)}
    for key in keys:
        parts = key.split(".")
        for index, part in enumerate(parts):
            prefix = ".".join([*parts[:index], ""])
            if part in family.parts and prefix in owned:
                owned[prefix].append(key)
    return [TrainBlock(family, prefix, tuple(own)) for prefix, own in owned.items()]


def _is_train(family: Family, prefix: str, names: Container[str]) -> bool:
    folded = family.lone and is_folded_in_place(prefix + family.lone, names)
    return not folded and all(prefix + sign in names for sign in family.signs)


def is_statistic(key: str) -> bool:
    """Say whether a key is of what RMNet's residuals log: the values of norms without weights."""
    return bool(_STATISTIC.search(key))


def layouts(state: Mapping[str, Tensor]) -> list[str]:
    """Return the known layouts that the keys are of, mostly one.

    Examples:
        >>> import torch
        >>> layouts({"stage0.rbr_reparam.weight": torch.zeros(4, 3, 3, 3)})
        ['RepVGG']
    """
    found = [family.label for family in FAMILIES if _blocks(family, state)]
    names = {part for key in state for part in key.split(".")}
    found += [label for name, label in _DEPLOYED.items() if name in names]
    found += ["RMNet"] if any(map(is_statistic, state)) else []
    kernels = [tensor for key, tensor in state.items() if _ENGINE.search(key)]
    if kernels and not found:
        pointwise = any(kernel.shape[2:].numel() == 1 for kernel in kernels)
        if is_timm_net(state):
            found.append("timm MobileOne" if pointwise else "timm RepVGG")
        else:  # this library's name for every block's one convolution is MobileOne's too
            found.append("MobileOne" if pointwise else "refold")
    plus = "RepVGG" in found and any(_PLUS.match(key) for key in state)
    return ["RepVGGplus" if plus and label == "RepVGG" else label for label in dict.fromkeys(found)]
