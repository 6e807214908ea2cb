"""The arguments of a call in one tuple: those with a place, then those that only have a name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils import _pytree as pytree


class Named(dict[str, Any]):
    """Arguments that a forward takes by name alone: the last item of a tuple of arguments.

    Examples:
        >>> pytree.tree_map(lambda size: 2 * size, (1, Named(scale=3)))
        (2, {'scale': 6})
    """


def _flattened(named: Any) -> tuple[list[Any], list[str]]:
    return list(named.values()), list(named)


def _flattened_with_keys(named: Any) -> tuple[list[tuple[Any, Any]], list[str]]:
    return [(_KEY(name), value) for name, value in named.items()], list(named)


def _unflattened(values: Any, names: Any) -> Named:
    return Named(zip(names, values, strict=True))


_KEY: Any = pytree.MappingKey
_register: Any = pytree.register_pytree_node  # its types know no dict of one's own
_register(
    Named,
    _flattened,
    _unflattened,
    serialized_type_name="refold.graph.trace.arguments.Named",
    flatten_with_keys_fn=_flattened_with_keys,
)


def parted(arguments: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional arguments and those by name.

    Examples:
        >>> parted((1, Named(scale=3)))
        ((1,), {'scale': 3})
    """
    if arguments and isinstance(arguments[-1], Named):
        return arguments[:-1], dict(arguments[-1])
    return arguments, {}


def call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Call a module or a function with a tuple of arguments.

    Examples:
        >>> call(dict, (Named(scale=3),))
        {'scale': 3}
    """
    args, kwargs = parted(arguments)
    return function(*args, **kwargs)


def is_default(value: Any, default: Any) -> bool:
    """Say whether an argument surely is its default.

    Examples:
        >>> is_default(1, 1), is_default(1, True), is_default([], [])
        (True, False, False)
    """
    plain = (bool, int, float, str, type(None))
    return type(value) is type(default) and isinstance(value, plain) and value == default
