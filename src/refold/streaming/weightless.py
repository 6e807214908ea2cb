"""Networks built without memory for their large parameters, which a file holds."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import swap_tensors

LEAST = 1 << 16
"""Bytes of a parameter that is worth leaving in the file."""


@contextmanager
def without_weights(least: int = LEAST) -> Generator[None]:
    """Put large parameters on the meta device as modules take them, while the body runs.

    Buffers stay, since a file need not hold them, and so do small parameters. Names that share a
    parameter share it afterwards, too.

    Args:
        least: bytes of a parameter that goes to meta.

    Examples:
        >>> with without_weights():
        ...     net = nn.Sequential(nn.Linear(1000, 1000), nn.BatchNorm1d(1000))
        >>> net[0].weight.is_meta, net[0].bias.is_meta, net[1].running_var.is_meta
        (True, False, False)
    """
    owner: Any = nn.Module
    register: Callable[..., None] = owner.register_parameter

    def watching(module: nn.Module, name: str, param: Any) -> None:
        register(module, name, param)
        if type(param) is nn.Parameter and not param.is_meta and param.nbytes >= least:
            empty = torch.empty_like(param, device="meta")
            swap_tensors(param, nn.Parameter(empty, requires_grad=param.requires_grad))

    owner.register_parameter = watching
    try:
        yield
    finally:
        owner.register_parameter = register
