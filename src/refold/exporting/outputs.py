"""Outputs that torch.export cannot take apart: dataclasses become dicts of their fields."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree


def with_plain_outputs(model: nn.Module, answer: object) -> object:
    """Let a model return dicts in place of dataclasses, and return such an answer of it.

    Args:
        model: is given a hook, if it needs one.
        answer: what it returned.
    """
    if not any(map(_is_record, pytree.tree_leaves(answer))):
        return answer

    def opened(module: nn.Module, args: Any, output: Any) -> Any:
        return pytree.tree_map(_opened, output)

    model.register_forward_hook(opened)
    return pytree.tree_map(_opened, answer)


def _is_record(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _opened(value: Any) -> Any:
    if not _is_record(value):
        return value
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return pytree.tree_map(_opened, fields)
