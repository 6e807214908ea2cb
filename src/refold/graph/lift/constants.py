"""Values that depend on parameters alone: a scale such as `self.gamma.reshape(1, -1, 1, 1)`."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, cast

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from refold.graph.calls import (
    Kind,
    is_kind_question,
    kind_by_name,
    name_of,
    place_of,
    reads_shape_only,
)
from refold.graph.copies.modules import attribute, submodule
from refold.graph.trace.aliases import tainted
from refold.graph.trace.capture import Capture
from refold.graph.trace.effects import maybe_mutated, mutated
from refold.graph.trace.frames import map_tree
from refold.graph.trace.overridden import layer_class

_UNKNOWN = object()


class Constants:
    """The parameter-only values of a capture, evaluated once and only when asked for.

    Args:
        capture: the captured root.
        changing: the values that change in place, where they are known already.

    Examples:
        >>> from refold.graph.trace.capture import capture
        >>> [found] = capture(nn.Sequential(nn.Linear(2, 2)))
        >>> [Constants(found).value(node) for node in found.graph.nodes]
        [None, None, None]
    """

    def __init__(self, capture: Capture, changing: Iterable[fx.Node] | None = None) -> None:
        self.capture = capture
        self._values: dict[fx.Node, Any] = {}
        self._sources: dict[fx.Node, tuple[str, ...]] = {}
        self._consumers: dict[str, frozenset[fx.Node]] | None = None
        self._joined: frozenset[str] = frozenset()
        self._cut_up: dict[str, bool] = {}
        self._changing = frozenset(tainted(capture.graph) if changing is None else changing)

    def value(self, node: fx.Node) -> torch.Tensor | float | int | None:
        """Return the value of `node`; None when inputs, randomness or in-place work decide it."""
        value = self._evaluate(node)
        return value if isinstance(value, torch.Tensor | float | int) else None

    def sources(self, node: fx.Node) -> tuple[str, ...]:
        """Return the paths (relative to the root) of the stored tensors that `node` reads."""
        if node not in self._sources:
            if node.op == "get_attr":
                self._sources[node] = (cast(str, node.target),)
            else:
                own = _held(self.capture, node) if node.op == "call_module" else ()
                below = map(self.sources, node.all_input_nodes)
                self._sources[node] = tuple(dict.fromkeys(chain(own, *below)))
        return self._sources[node]

    def is_stored(self, node: fx.Node) -> bool:
        """Say whether a value comes from a parameter or buffer, and so tells a model's precision.

        What a forward writes down itself, as `torch.tensor(0.7)`, does not: torch lets it take on
        the precision of what it meets.
        """
        return any("_constant" not in path.rpartition(".")[2] for path in self.sources(node))

    def shared(self, path: str) -> str | None:
        """Return why the tensor at `path` must not be folded away or changed, or None.

        It is shared when another parameter uses its storage, when a second module holds it, when
        more than one node reads the same of its numbers (`join` may know better), or when the
        model's code changes it.
        """
        changing = self._changing_reason(path)
        if changing is not None:
            return changing
        return self.capture.ties.reason(self.capture.full(path)) or self._read_often(path)

    def _read_often(self, path: str) -> str | None:
        readers = self.consumers().get(path, ())
        if len(readers) < 2 or path in self._joined or self._is_cut_up(path):
            return None
        names = ", ".join(sorted({place_of(reader) for reader in readers})[:3])
        return f"{self.capture.full(path)} is read more than once ({names})"

    def _is_cut_up(self, path: str) -> bool:
        """Say whether the readers of a tensor take slices that have no number in common."""
        if path not in self._cut_up:
            self._cut_up[path] = self._have_nothing_in_common(path)
        return self._cut_up[path]

    def _have_nothing_in_common(self, path: str) -> bool:
        if any(node.op == "call_module" for node in self._readers()[path]):
            return False
        marks = torch.zeros(attribute(self.capture.module, path).shape, dtype=torch.bool)
        nodes = self.capture.graph.nodes
        stored = (node for node in nodes if node.op == "get_attr" and node.target == path)
        pending: list[tuple[fx.Node, Any]] = [(node, marks) for node in stored]
        while pending:
            node, read = pending.pop()
            for user in (user for user in node.users if not reads_shape_only(user, node)):
                part = self._part(user, read)
                if part is not None:
                    pending.append((user, part))
                elif not isinstance(read, torch.Tensor) or bool(read.any()):
                    return False
                else:
                    read.fill_(True)
        return True

    def _part(self, node: fx.Node, read: Any) -> Any:
        """Return what a call takes of `read`, as views of it; None where it gives anything else."""
        of_several = isinstance(read, tuple) and node.target is operator.getitem
        if not of_several and Kind.VIEW not in kind_by_name(name_of(node)):
            return None
        if len(node.all_input_nodes) > 1 or self._evaluate(node) is _UNKNOWN:
            return None

        def given(leaf: Any) -> Any:
            return read if isinstance(leaf, fx.Node) else leaf

        args, kwargs = map_tree(given, (node.args, node.kwargs))
        part = _call(self.capture, node, args, kwargs)
        memory = {_memory(one) for one in (part if isinstance(part, tuple) else (part,))}
        return part if memory == {_memory(read[0] if isinstance(read, tuple) else read)} else None

    def consumers(self) -> dict[str, frozenset[fx.Node]]:
        """Return, for each tensor that several calls read, what it reaches and depends on more.

        One that a single call reads is not among them: what is computed from it may be used often,
        as a norm with fixed statistics uses its scale for its shift.
        """
        if self._consumers is None:
            readers = self._readers().items()
            self._consumers = {
                path: frozenset(end for node in found for end in self._ends(node))
                for path, found in readers
                if len(found) > 1
            }
        return self._consumers

    def join(self, paths: Iterable[str]) -> None:
        """Take tensors as read once, since one layer will stand for all of their readers."""
        self._joined = frozenset(paths)

    def _readers(self) -> dict[str, set[fx.Node]]:
        """Return, for each stored tensor, the calls that read it."""
        readers: dict[str, set[fx.Node]] = {}
        for node in self.capture.graph.nodes:
            if node.op == "call_module":
                for path in _held(self.capture, node):
                    readers.setdefault(path, set()).add(node)
            elif node.op == "get_attr":
                reading = {user for user in node.users if not reads_shape_only(user, node)}
                readers.setdefault(cast(str, node.target), set()).update(reading)
        return readers

    def _ends(self, node: fx.Node) -> Iterator[fx.Node]:
        """Yield the first nodes from this one on that more than stored tensors take part in."""
        pending, seen = [node], {node}
        while pending:
            current = pending.pop()
            if self._evaluate(current) is _UNKNOWN:
                yield current
                continue
            after = {user for user in current.users if not reads_shape_only(user, current)} - seen
            pending.extend(after)
            seen |= after

    def _changing_reason(self, path: str) -> str | None:
        value = attribute(self.capture.module, path)
        return self.capture.changing(value) if isinstance(value, torch.Tensor) else None

    def _evaluate(self, node: fx.Node) -> Any:
        stack = [node]
        while stack:  # not recursive: chains can be long
            current = stack[-1]
            if current in self._values:
                stack.pop()
                continue
            if current in self._changing or not self._may_evaluate(current):
                self._values[current] = _UNKNOWN
                continue
            missing = [arg for arg in _decided_by(current) if arg not in self._values]
            if missing:
                stack.extend(missing)
                continue
            self._values[current] = self._run(current)
        return self._values[node]

    def _run(self, node: fx.Node) -> Any:
        decided_by = _decided_by(node)
        if any(self._values[arg] is _UNKNOWN for arg in decided_by):
            return _UNKNOWN
        if len(decided_by) < len(node.all_input_nodes):  # a cast to the type of another value
            value = self._values[decided_by[0]]
            is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
            return value if is_float else _UNKNOWN
        if node.op == "get_attr":
            value = attribute(self.capture.module, cast(str, node.target))
            if not isinstance(value, torch.Tensor):
                return value
            return value.detach() if self.capture.changing(value) is None else _UNKNOWN
        args = cast("tuple[Any, ...]", map_tree(self._known, node.args))
        kwargs = cast("dict[str, Any]", map_tree(self._known, dict(node.kwargs)))
        try:
            with torch.no_grad():
                return _call(self.capture, node, args, kwargs)
        except Exception:  # the model's own arithmetic fails: then it is not a constant of ours
            return _UNKNOWN

    def _known(self, leaf: Any) -> Any:
        return self._values[leaf] if isinstance(leaf, fx.Node) else leaf

    def _may_evaluate(self, node: fx.Node) -> bool:
        if node.op != "call_module":
            return _is_fixed(node)
        path = cast(str, node.target)
        layer = layer_class(submodule(self.capture.module, path))
        return path not in self.capture.pinned and issubclass(layer, nn.Linear | _ConvNd)


def _call(capture: Capture, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if node.op == "call_method":
        return getattr(args[0], cast(str, node.target))(*args[1:], **kwargs)
    if node.op == "call_module":
        return submodule(capture.module, cast(str, node.target))(*args, **kwargs)
    return cast(Any, node.target)(*args, **kwargs)


def _memory(value: Any) -> int | None:
    return value.untyped_storage().data_ptr() if isinstance(value, torch.Tensor) else None


def _decided_by(node: fx.Node) -> list[fx.Node]:
    """Return what decides the numbers of a value: of a cast, not whose type it takes on."""
    if node.op == "call_method" and node.target == "to" and len(node.args) > 1:
        kinds = node.all_input_nodes[1:]
        if kinds and all(map(is_kind_question, kinds)):
            return node.all_input_nodes[:1]
    return node.all_input_nodes


def _is_fixed(node: fx.Node) -> bool:
    """Say whether a call gives the same whenever it is given the same."""
    if node.op == "get_attr":
        return True
    if node.op not in ("call_function", "call_method") or not node.all_input_nodes:
        return False
    changed = mutated(node) or maybe_mutated(node)
    changed = changed or any(node in mutated(user) for user in node.users)
    return not changed and Kind.RANDOM not in kind_by_name(name_of(node))


def _held(capture: Capture, node: fx.Node) -> Iterator[str]:
    """Yield the paths of the tensors that a called module holds."""
    target = submodule(capture.module, cast(str, node.target))
    if target._modules:
        names = [name for name, _ in (*target.named_parameters(), *target.named_buffers())]
    else:  # quicker, and most are layers
        tables = (target._parameters, target._buffers)
        names = [name for table in tables for name in table if table[name] is not None]
    for name in names:
        yield f"{node.target}.{name}"
