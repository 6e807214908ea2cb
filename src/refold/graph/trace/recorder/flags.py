"""Plain attributes that the code of a model reads: flags, factors, functions.

What code makes of them is fixed in a forward that is written anew: who sets one later must hear of
it.
"""

from __future__ import annotations

import enum
import functools
from collections import deque
from collections.abc import Iterable
from types import BuiltinFunctionType, CodeType, ModuleType
from typing import Any, cast

import torch
from torch import fx, nn

from refold.graph.copies.held import ATOMS, CALLABLES
from refold.graph.copies.watching import Absent
from refold.graph.trace.code import functions_of, is_foreign, names_in
from refold.graph.trace.frames import Frame, Reading

_INTERNAL = frozenset({*nn.Module().__dict__, "forward"})
_KINDS = (enum.Enum, BuiltinFunctionType, torch.dtype, torch.device, torch.memory_format)
_NESTS = (tuple, list, set, frozenset)


class FlagNotes:
    """The reads of plain attributes in one run, each with the place in the graph.

    Args:
        graph: the graph as it is written.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self._read: dict[tuple[Frame, str, str, int], Any] = {}

    def note(self, frame: Frame, path: str, name: str, value: Any) -> None:
        """Note a read by the code of a frame."""
        self._read.setdefault((frame, path, name, len(self.graph.nodes)), value)

    def tell(self, nodes: list[fx.Node], own: set[tuple[str, str]]) -> None:
        """Give every frame what its code has read.

        Args:
            nodes: all that were recorded, in order, those that are gone by now as well.
            own: attributes that the code sets itself, by path and name: they are state.
        """
        following = nodes[-1:]  # of each node in turn: itself or the next that is left
        for node in reversed(nodes):
            is_gone = node._erased  # pyright: ignore[reportPrivateUsage]
            following.append(following[-1] if is_gone else node)
        following.reverse()
        for (frame, path, name, count), value in self._read.items():
            if (path, name) in own:
                continue
            is_tensor = isinstance(value, torch.Tensor)
            if value is Absent or is_tensor or is_flag(value) or holds_plain(value):
                frame.reads.append(Reading(path, name, value, following[count]))


def is_flag(value: Any) -> bool:
    """Say whether a value is plain: what code decides by, or computes with.

    Examples:
        >>> is_flag(0.5), is_flag([1, 2]), is_flag(torch.relu), is_flag(nn.ReLU())
        (True, True, True, False)
    """
    if type(value) in ATOMS or isinstance(value, (*_KINDS, *CALLABLES)):
        return True
    if isinstance(value, dict):
        return all(map(is_flag, cast("dict[Any, Any]", value).values()))
    return isinstance(value, _NESTS) and all(map(is_flag, cast("list[Any]", value)))


def holds_plain(value: Any) -> bool:
    """Say whether a value may hold what code decides by: a container, an object of some class.

    Examples:
        >>> holds_plain([1]), holds_plain({}), holds_plain(2), holds_plain(nn.ReLU())
        (True, True, False, False)
    """
    if isinstance(value, (*_NESTS, dict, deque, *CALLABLES)):
        return True
    kind = type(value)
    is_other = isinstance(value, (nn.Module, torch.Tensor, type, ModuleType, *_KINDS))
    if kind in ATOMS or is_other:
        return False
    # Of the libraries' own objects those that are compared by what they hold: no logger, no lock.
    return not is_foreign(kind) or kind.__eq__ is not object.__eq__


def is_hashable(value: Any) -> bool:
    """Say whether a value has a hash: nothing in a plain one can be changed then.

    Examples:
        >>> is_hashable((1, "a")), is_hashable((1, []))
        (True, False)
    """
    try:
        hash(value)
    except TypeError:
        return False
    return True


def readable_attributes(modules: Iterable[nn.Module]) -> dict[type[nn.Module], set[str]]:
    """Return what code may read of modules besides tensors and modules, by class.

    Torch's own layers are left out, and what every module has.

    Examples:
        >>> readable_attributes([nn.ReLU()])
        {}
    """
    found: dict[type[nn.Module], set[str]] = {}
    for module in modules:
        kind = type(module)
        known = found.get(kind)
        if known is None:
            if kind.__module__.startswith("torch."):
                continue
            known = found[kind] = set(_of_class(kind))
        known.update(module.__dict__.keys() - _INTERNAL)
    return found


@functools.lru_cache(maxsize=1024)
def _of_class(kind: type) -> frozenset[str]:
    """Return the plain attributes of a class, and those that its code asks for by a text."""
    plain = {
        name
        for base in kind.__mro__
        if not f"{base.__module__}.".startswith(("torch.", "builtins."))
        for name, value in vars(base).items()
        if type(value) in ATOMS and not name.startswith("__")
    }
    codes = (function.__code__ for function in functions_of(kind))
    asked = {text for code in codes if _ASKING & {*names_in(code)} for text in texts_in(code)}
    return frozenset(plain | asked) - _INTERNAL


_ASKING = frozenset({"getattr", "hasattr"})


def texts_in(code: CodeType) -> set[str]:
    """Return the constants of code that may be names.

    Examples:
        >>> texts_in((lambda table: table["norm"]).__code__)
        {'norm'}
    """
    inner = (texts_in(part) for part in code.co_consts if isinstance(part, CodeType))
    own = {text for text in code.co_consts if isinstance(text, str) and text.isidentifier()}
    return own.union(*inner)
