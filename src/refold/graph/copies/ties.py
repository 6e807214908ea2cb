"""Stored tensors that share their values: tied weights, views of one another."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import cast

import torch
from torch import nn

from refold.graph.copies.held import byte_span, storage_key
from refold.graph.copies.modules import attribute, modules_by_path


class Ties:
    """Which stored tensors of a model share their values with others, found when first asked for.

    Examples:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> net[1].weight = net[0].weight
        >>> Ties(net).reason("0.weight"), Ties(net).reason("0.bias")
        ('0.weight shares its values with 1.weight', None)
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def reason(self, path: str) -> str | None:
        """Return why the tensor at a path must not change alone, or None."""
        return self._reasons.get(path)

    @cached_property
    def _reasons(self) -> dict[str, str]:
        named = list(_stored(self._model))
        holders: dict[int, dict[tuple[int, str], str]] = {}
        for path, tensor, place in named:  # a module's second name is not a tied weight
            holders.setdefault(storage_key(tensor), {}).setdefault(place, path)
        found: dict[str, str] = {}
        for path, tensor, place in named:
            known = holders[storage_key(tensor)]
            others = [other for key, other in known.items() if key != place]
            others = [other for other in others if self._overlaps(tensor, other)]
            if others:
                found[path] = f"{path} shares its values with {others[0]}"
        return found

    def _overlaps(self, tensor: torch.Tensor, path: str) -> bool:
        other = cast(torch.Tensor, attribute(self._model, path))
        if other is tensor:
            return True
        (low, high), (start, end) = byte_span(tensor), byte_span(other)
        return low < end and start < high


def _stored(model: nn.Module) -> Iterator[tuple[str, torch.Tensor, tuple[int, str]]]:
    """Yield the stored tensors of a model under every name, each with its module and name there."""
    for path, module in modules_by_path(model, every_name=True):
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                yield f"{path}.{name}" if path else name, tensor, (id(module), name)
