"""A model in float16 that is called as before: the casts are inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from refold.equivalence import cast_floats
from refold.errors import ExportError

_LARGEST = torch.finfo(torch.float16).max


def halved(model: nn.Module) -> nn.Module:
    """Cast a model's weights to float16, in place; its inputs and outputs keep their types.

    Raises:
        ExportError: when a weight is beyond what float16 holds.
    """
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            largest = float(tensor.abs().max()) if tensor.numel() else 0.0
            if largest > _LARGEST:
                raise ExportError(
                    f"{name} reaches {largest:.3g}, beyond the largest float16, {_LARGEST:.5g}: "
                    "export without half=True"
                )
    outer = _Outer(next((p.dtype for p in model.parameters() if p.is_floating_point()), None))
    model.half()
    model.register_forward_pre_hook(outer.enter)
    model.register_forward_hook(outer.leave)
    return model


class _Outer:
    """The types outside a model in float16."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        self._dtype = dtype or torch.float32

    def enter(self, module: nn.Module, args: Any) -> Any:
        return pytree.tree_map_only(Tensor, lambda x: cast_floats(x, torch.float16), args)

    def leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        return pytree.tree_map_only(Tensor, lambda x: cast_floats(x, self._dtype), output)
