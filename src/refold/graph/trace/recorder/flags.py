"""Plain attributes that the code of a model reads: flags, factors, functions.

What code makes of them is fixed in a forward that is written anew: who sets one later must hear of
it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from types import CodeType
from typing import Any

import torch
from torch import fx, nn

from refold.graph.copies.held import ATOMS
from refold.graph.copies.watching import Absent
from refold.graph.trace.code.names import functions_of, names_in
from refold.graph.trace.frames import Frame, Reading
from refold.graph.trace.recorder.plain_contents import contents, holds_plain, is_flag

_INTERNAL = frozenset({*nn.Module().__dict__, "forward"})


class FlagNotes:
    """The reads of plain attributes in one run, each with the place in the graph.

    Args:
        graph: the graph as it is written.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self._read: dict[tuple[Frame, str, str, int], Any] = {}
        self._held: dict[int, tuple[Any, Any]] = {}  # what holders hold when they are first read

    def note(self, frame: Frame, path: str, name: str, value: Any) -> None:
        """Note a read by the code of a frame."""
        self._read.setdefault((frame, path, name, len(self.graph.nodes)), value)
        if id(value) not in self._held and holds_plain(value):
            self._held[id(value)] = value, contents(value, None)

    def altered(self) -> set[tuple[str, str]]:
        """Return the attributes, by path and name, whose holders hold something else by now."""
        changed = {
            key for key, (value, before) in self._held.items() if contents(value, None) != before
        }
        reads = self._read.items()
        return {(path, name) for (_, path, name, _), value in reads if id(value) in changed}

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
