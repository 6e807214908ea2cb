"""What a file calls its inputs and outputs: the forward's own names, which stay the same."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from refold.equivalence import tensor_paths
from refold.errors import InputError
from refold.graph import unwrap
from refold.inputs import Arguments, parted


def input_names(model: nn.Module, inputs: Arguments, given: Sequence[str] | None) -> list[str]:
    """Return a name for each tensor among the inputs: the forward's argument, and the place in it.

    Raises:
        InputError: when the given names are not one for each, or two are equal.

    Examples:
        >>> import torch
        >>> input_names(nn.Linear(2, 3), (torch.ones(1, 2),), None)
        ['input']
    """
    rows = list(inspect.signature(unwrap(model).forward).parameters.values())
    found: list[str] = []
    args, named = parted(inputs)
    for at, value in enumerate(args):
        row = rows[min(at, len(rows) - 1)] if rows else None
        word = f"input{at}" if row is None else row.name
        if row is not None and row.kind is row.VAR_POSITIONAL:
            word = f"{word}{at - rows.index(row)}" if len(args) > 1 else "input"
        found += _paths(word, value)
    for word, value in named.items():
        found += _paths(word, value)
    return _settled(found, given, "input")


def _paths(word: str, value: object) -> list[str]:
    leaves = pytree.tree_flatten_with_path(value)[0]
    return [f"{word}{pytree.keystr(path)}" for path, leaf in leaves if isinstance(leaf, Tensor)]


def output_names(outputs: object, given: Sequence[str] | None) -> list[str]:
    """Return a name for each tensor among the outputs: keys and fields, else `output` and a number.

    Raises:
        InputError: when the given names are not one for each, or two are equal.

    Examples:
        >>> import torch
        >>> output_names({"boxes": torch.ones(1), "maps": [torch.ones(1), torch.ones(1)]}, None)
        ['boxes', 'maps_0', 'maps_1']
        >>> output_names((torch.ones(1), torch.ones(1)), None)
        ['output0', 'output1']
    """
    found = [re.sub(r"^output", "", path) for path in tensor_paths(outputs)]
    named = [f"output{p[1:]}" if re.match(r"\[\d", p) else p or "output0" for p in found]
    return _settled(named, given, "output")


def _settled(found: Iterable[str], given: Sequence[str] | None, what: str) -> list[str]:
    plain = [_plain(name) or what for name in found]
    if given is None:
        return unique(plain)
    if isinstance(given, str) or not all(isinstance(cast(Any, name), str) for name in given):
        raise InputError(f"{what}_names must be a list of names, got {given!r}")
    names = list(given)
    if len(names) != len(plain) or len(set(names)) < len(names) or not all(names):
        wanted = "one name" if len(plain) == 1 else f"{len(plain)} different names"
        raise InputError(
            f"{what}_names must be {wanted}, for {', '.join(unique(plain))}; got "
            f"{', '.join(map(repr, names)) or 'none'}"
        )
    return names


def unique(names: Iterable[str], taken: Iterable[Any] = ()) -> list[str]:
    """Return the names, a number added to those that repeat an earlier one.

    Examples:
        >>> unique(["a", "b", "a"])
        ['a', 'b', 'a_1']
    """
    seen = set(taken)
    result: list[str] = []
    for name in names:
        free, count = name, 0
        while free in seen:
            count += 1
            free = f"{name}_{count}"
        seen.add(free)
        result.append(free)
    return result


def _plain(path: str) -> str:
    """Return a path as one word: letters, digits, underscores."""
    return re.sub(r"\W+", "_", path.replace("'", "")).strip("_")
