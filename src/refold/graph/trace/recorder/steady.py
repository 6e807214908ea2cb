"""The form of a call: all that code knows of its arguments which asks nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refold.graph.copies.held import ATOMS

Form = tuple[tuple[Any, ...], ...]


def form_of(
    args: tuple[Any, ...], kwargs: dict[str, Any], rank_of: Callable[[Any], int | None]
) -> Form | None:
    """Return the ranks of the values that a call is given, and its plain arguments.

    Args:
        args: positional arguments.
        kwargs: arguments by name.
        rank_of: returns how many axes a value of the run has; None where it is no such value.

    Returns:
        None where it is given anything else.

    Examples:
        >>> import torch
        >>> form_of((torch.ones(2, 3),), {"scale": 2}, torch.Tensor.dim)
        ((0, 2), ('scale', <class 'int'>, 2))
    """
    found = list[tuple[Any, ...]]()
    for name, value in (*enumerate(args), *kwargs.items()):
        if type(value) in ATOMS:
            found.append((name, type(value), value))
        elif (rank := rank_of(value)) is not None:
            found.append((name, rank))
        else:
            return None
    return tuple(found)
