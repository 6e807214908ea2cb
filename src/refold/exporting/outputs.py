"""Outputs that a format has no form for: records become dicts, a graph returns tensors alone."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from refold.equivalence import tensor_leaves


def with_plain_outputs(model: nn.Module, answer: object, *, flat: bool) -> object:
    """Let a model return dicts in place of dataclasses and named tuples; return such an answer.

    Args:
        model: is given a hook, if it needs one.
        answer: what it returned.
        flat: whether the format knows tensors only, each once: the model then returns a tuple of
            them where it returned other things besides, or one tensor twice.
    """
    plain = opened(answer)
    leaves = pytree.tree_leaves(plain)
    is_once = len({id(leaf) for leaf in leaves}) == len(leaves)
    if flat and not (is_once and all(isinstance(leaf, Tensor) for leaf in leaves)):
        model.register_forward_hook(lambda module, args, output: _apart(opened(output)))
    elif plain is not answer:
        model.register_forward_hook(lambda module, args, output: opened(output))
    return plain


def _apart(value: object) -> tuple[Tensor, ...]:
    """Return the tensors in a value; a second mention of one is a copy."""
    found: list[Tensor] = []
    for leaf in tensor_leaves(value):
        found.append(torch.cat([leaf]) if any(leaf is other for other in found) else leaf)
    return tuple(found)


def _is_named_tuple(value: object) -> bool:
    return isinstance(value, tuple) and hasattr(cast(Any, value), "_fields")


def _is_record(value: object) -> bool:
    is_dataclass = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return _is_named_tuple(value) or is_dataclass


def opened(value: Any) -> Any:
    """Return a value without records; the value itself where it holds none."""
    if not any(map(_is_record, pytree.tree_leaves(value, is_leaf=_is_named_tuple))):
        return value
    return pytree.tree_map(_fields, value, is_leaf=_is_named_tuple)


def _fields(value: Any) -> Any:
    if _is_named_tuple(value):
        return opened(value._asdict())
    if not _is_record(value):
        return value
    return opened({entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value)})
