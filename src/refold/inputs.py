"""What a model is called with: `example_inputs`, in every form that verbs take, as arguments.

`refold.graph` lies below and takes arguments alone; a verb reads them here first.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from refold.errors import InputError, cannot_run
from refold.graph import Named, call, parted, unwrap

__all__ = [
    "Arguments",
    "arguments",
    "call",
    "parted",
    "required",
    "tensors",
    "unrunnable",
]

Arguments = tuple[Any, ...]
"""Arguments of a model: tensors, or lists and dicts of them; `Named` ones come last."""

_FORMS = "a tensor, a tuple or list of arguments, or a mapping of them by name"


def arguments(model: nn.Module, example_inputs: object) -> Arguments | None:
    """Return example inputs as the arguments of `model.forward`.

    Args:
        model: what they are for; its signature puts named arguments in order.
        example_inputs: a tensor, a tuple or list of arguments, a mapping of them by name, or None.

    Raises:
        InputError: when they are something else, or the names do not fit the signature.

    Examples:
        >>> arguments(nn.Identity(), {"input": 3})
        (3,)
    """
    if example_inputs is None:
        return None
    if isinstance(example_inputs, Tensor):
        return (example_inputs,)
    if isinstance(example_inputs, tuple | list):
        return tuple(cast(list[Any], example_inputs))
    if isinstance(example_inputs, Mapping):
        return _in_order(model, dict(cast(Mapping[str, Any], example_inputs)))
    raise InputError(f"example_inputs must be {_FORMS}, got {type(example_inputs).__name__}")


def required(model: nn.Module, example_inputs: object) -> Arguments:
    """Return example inputs as positional arguments where a verb cannot do without them.

    Raises:
        InputError: when there are none, or `arguments` cannot read them.
    """
    found = arguments(model, example_inputs)
    if not found:
        raise InputError(f"this needs example_inputs: give {_FORMS}")
    return found


def tensors(inputs: object) -> list[Tensor]:
    """Return the tensors in some arguments, in order."""
    return [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]


def unrunnable(model: nn.Module, inputs: Arguments, error: Exception) -> InputError:
    """Return the error that says on which inputs the model failed, and how."""
    return cannot_run(type(model).__name__, pytree.tree_leaves(inputs), error)


def _in_order(model: nn.Module, named: Mapping[str, Any]) -> Arguments:
    """Return named arguments in the order of the signature, gaps filled with defaults.

    Those that a forward takes by name alone come last.
    """
    rows = inspect.signature(unwrap(model).forward).parameters.values()
    places = [row for row in rows if row.kind in (row.POSITIONAL_ONLY, row.POSITIONAL_OR_KEYWORD)]
    names = [row.name for row in places]
    apart = [row for row in rows if row.kind is row.KEYWORD_ONLY]
    count = max((names.index(key) + 1 for key in named if key in names), default=0)
    given = {row.name: named.get(row.name, row.default) for row in places[:count]}
    by_name = Named({row.name: named[row.name] for row in apart if row.name in named})
    needed = {row.name: by_name.get(row.name, row.default) for row in apart}
    strange = [key for key in named if key not in names and key not in needed]
    if any(row.kind is row.VAR_KEYWORD for row in rows):
        by_name.update((key, named[key]) for key in strange)
        strange.clear()
    missing = [key for key, value in (given | needed).items() if value is inspect.Parameter.empty]
    if strange or missing:
        what = f"has no argument {strange[0]!r}" if strange else f"needs {missing[0]!r}"
        known = ", ".join((*names, *needed))
        raise InputError(
            f"example_inputs: {type(unwrap(model)).__name__}.forward({known}) {what}; "
            "a mapping names arguments, (mapping,) is one argument"
        )
    return (*given.values(), *((by_name,) if by_name else ()))
