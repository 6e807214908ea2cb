"""Weights of an expanded network, offered to the network that it was before."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from refold.branches import builder, list_blocks
from refold.checkpoint.kinds import some

_COUNTER = "num_batches_tracked"


def branches_told(model: nn.Module, missing: Iterable[str], names: Collection[str]) -> str:
    """Say that a file holds branches of a block where a model has convolutions; else nothing.

    Args:
        model: what the weights should fit.
        missing: the tensors of it that the file lacks.
        names: those of the file.
    """
    found = {path: below for path in _layers(model, missing) if (below := _below(path, names))}
    if not found:
        return ""
    first, inside = next(iter(found.items()))
    block = _block(model.get_submodule(first), inside)
    if block is None:
        return ""
    return (
        f"holds {block} branches where the model has plain convolutions ({some(list(found))}): "
        f"pass --block {block} to refold train, or collapse the weights first (refold collapse "
        f"--block {block}); in Python, load them into refold.expand(model, {block!r})"
    )


def _layers(model: nn.Module, missing: Iterable[str]) -> Iterator[str]:
    """Yield the convolutions whose kernels are missing."""
    modules = dict(model.named_modules())
    for name in missing:
        path, _, role = name.rpartition(".")
        if role == "weight" and isinstance(modules.get(path), _ConvNd):
            yield path


def _below(path: str, names: Collection[str]) -> set[str]:
    start = f"{path}."
    found = {name.removeprefix(start) for name in names if name.startswith(start)}
    return {name for name in found if not name.endswith(_COUNTER)}


def _block(layer: nn.Module, names: set[str]) -> str | None:
    """Return the block whose tensors have these names, made for a convolution; None for none."""
    bare = copy.deepcopy(layer).to("meta")
    for block in list_blocks():
        try:
            with torch.device("meta"):
                made = builder(block)(bare)
        except Exception:  # it suits no such convolution
            continue
        if {name for name in made.state_dict() if not name.endswith(_COUNTER)} == names:
            return block
    return None
