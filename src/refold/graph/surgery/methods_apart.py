"""The methods beside forward that may take a fold apart, and what they must not take apart."""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from types import FunctionType
from typing import Any

from torch import fx

from refold.graph.surgery.edits import Edits, alive
from refold.graph.surgery.guards import Folded, Guard, signature_of
from refold.graph.trace.code.names import methods_of
from refold.graph.trace.code.reads import BY_ANY_NAME, attributes_of_self
from refold.graph.trace.code.source import branches_on
from refold.graph.trace.frames import Frame, common_ancestor, nodes_in, walk


@dataclass(frozen=True)
class _Group:
    """Layers that were folded together, by their paths below the captured root. See `Folded`."""

    nodes: tuple[fx.Node, ...]
    layers: tuple[str, ...]
    is_chain: bool
    top: str
    method: str


def _groups(
    edits: Edits, steps: Iterable[Iterable[fx.Node]], readers: dict[fx.Node, set[fx.Node]]
) -> list[_Group]:
    changed = _changed_layers(edits)
    calls = _calls(edits)
    parts = ([node for node in step if node in changed or not alive(node)] for step in steps)
    groups = _joined(parts)
    known = {node for group in groups for node in group}
    groups += [[node] for node in changed if node not in known]
    order = {node: place for place, node in enumerate(edits.before)}
    found: list[_Group] = []
    for group in groups:
        nodes = sorted((n for n in group if n in order), key=order.__getitem__)
        if not nodes:
            continue
        layers = [node for node in nodes if node in changed]
        top = common_ancestor([edits.home[node] for node in nodes])
        places = {node: _place(edits, node, top) for node in nodes if node not in changed}
        places |= {node: str(edits.before[node][1]) for node in layers}
        paths = tuple(dict.fromkeys(path for node in nodes if (path := places[node])))
        if not paths:
            continue
        is_single = all(calls[edits.before[node][1]] == 1 for node in layers)
        is_chain = is_single and layers == nodes and _is_chain(layers, edits, readers)
        found.append(_Group(tuple(nodes), paths, is_chain, top.path, top.method))
    return found


def _place(edits: Edits, node: fx.Node, top: Frame) -> str:
    """Return the path of the module whose own code has lost a function or a weight to a fold.

    Empty for the code that runs the whole fold, and for layers that are gone without it.
    """
    home = edits.home[node]
    is_own = edits.before[node][0] != "call_module" and home.path != top.path
    return home.path if is_own else ""


def _changed_layers(edits: Edits) -> set[fx.Node]:
    """Return the calls of layers that hold something else now, or of which nothing is left."""
    lost = edits.lost_layers()
    return {
        node
        for node, (op, target, _, _) in edits.before.items()
        if op == "call_module"
        and node not in edits.idle
        and (target in edits.modules or node in edits.identities or target in lost)
    }


def _readers(edits: Edits) -> dict[fx.Node, set[fx.Node]]:
    found: dict[fx.Node, set[fx.Node]] = {}
    for node, (_, _, args, kwargs) in edits.before.items():
        for value in nodes_in((args, kwargs)):
            found.setdefault(value, set()).add(node)
    return found


def _calls(edits: Edits) -> Counter[Any]:
    """Count the calls of every layer."""
    return Counter(target for op, target, _, _ in edits.before.values() if op == "call_module")


def _joined(groups: Iterable[list[fx.Node]]) -> list[list[fx.Node]]:
    """Return the groups with those that share a node made one."""
    place: dict[fx.Node, int] = {}
    found: list[dict[fx.Node, None]] = []
    for group in groups:
        shared = {place[node] for node in group if node in place}
        merged = dict.fromkeys(group)
        for index in shared:
            merged.update(found[index])
            found[index] = {}
        place.update(dict.fromkeys(merged, len(found)))
        found.append(merged)
    return [list(group) for group in found if group]


def _is_chain(layers: list[fx.Node], edits: Edits, readers: dict[fx.Node, set[fx.Node]]) -> bool:
    """Say whether layers only read each other, and all in a row still give what they gave."""
    hosts = [node for node in layers if node not in edits.identities]
    if len(layers) < 2 or not hosts or not all(map(alive, hosts)):
        return False
    in_a_row = all(after.all_input_nodes == [first] for first, after in pairwise(hosts))
    if not in_a_row or edits.now(layers[-1]) is not hosts[-1]:
        return False
    return all(
        edits.before[after][2:] == ((first,), {}) and readers.get(first) == {after}
        for first, after in pairwise(layers)
    )


@dataclass(frozen=True)
class MethodsApart:
    """What methods of the modules of an edited graph must not take apart.

    Args:
        edits: the edits.
        steps: the original nodes that each step of a fold has joined.
        names: all paths that a module has had, by each of them.
    """

    edits: Edits
    steps: list[set[fx.Node]]
    names: dict[str, list[str]]

    @cached_property
    def _folds(self) -> list[_Group]:
        return _groups(self.edits, self.steps, self._readers)

    @cached_property
    def _readers(self) -> dict[fx.Node, set[fx.Node]]:
        return _readers(self.edits)

    @cached_property
    def _below(self) -> dict[str, list[_Group]]:
        found: dict[str, dict[int, _Group]] = {}
        for number, group in enumerate(self._folds):
            for path in (name for layer in group.layers for name in self.names.get(layer, [layer])):
                parts = path.split(".")
                for depth in range(len(parts)):
                    found.setdefault(".".join(parts[:depth]), {})[number] = group
        return {path: list(groups.values()) for path, groups in found.items()}

    def guards(self, kinds: dict[str, type]) -> Iterator[tuple[str, Guard, list[str]]]:
        """Yield the modules that need a guard, each with it and the methods to be guarded.

        Args:
            kinds: the classes of the modules, by path below the captured root.
        """
        ran: dict[tuple[str, str], list[Frame]] = {}
        for frame in walk(self.edits.capture.root):
            ran.setdefault((frame.path, frame.method), []).append(frame)
        for path, kind in kinds.items():
            groups = self._below.get(path)
            if not groups:
                continue
            apart = self._apart(path, kind, groups)
            exact = {name: self._exact(ran.get((path, name), [])) for name in apart}
            if self.edits.capture.full(path):  # what the model itself is given is tried otherwise
                exact |= _with_options(ran.get((path, "forward"), []), groups)
            known = {name: given for name, given in exact.items() if given is not None}
            names = [name for name, given in exact.items() if given != {}]
            if names:  # what takes tensors alone is only called as forward does
                folds = self._seen_from(path, groups)
                yield path, Guard(self.edits.capture.full(path), folds, known), names

    def _apart(self, path: str, kind: type, groups: list[_Group]) -> list[str]:
        """Return the methods of a module's class that may run a part of a fold by itself."""
        methods = reads_of_methods(kind)
        if not methods:
            return []  # most classes have none beside forward
        folds = self._seen_from(path, groups)
        near = {name for group in groups for name in self._places(path, group)}
        return [name for name, reads in methods.items() if _reach(reads, folds, near)]

    def guards_above(
        self, kinds: Iterable[tuple[str, str, type]]
    ) -> Iterator[tuple[str, Guard, list[str]]]:
        """Yield what `guards` does, for modules that hold the captured root.

        Args:
            kinds: the path of each in the model, that of the captured root below it, its class.
        """
        for where, root, kind in kinds:
            folds = tuple(
                Folded(
                    tuple(f"{root}.{layer}" if layer else root for layer in group.layers),
                    group.is_chain,
                    f"{root}.{group.top}" if group.top else root,
                    group.method,
                )
                for group in self._folds
            )
            methods = reads_of_methods(kind) if folds else {}
            if names := [name for name, reads in methods.items() if _reach(reads, folds, set())]:
                yield where, Guard(where, folds), names

    def _seen_from(self, path: str, groups: list[_Group]) -> tuple[Folded, ...]:
        """Return folds with the paths that a module knows: those of others are empty."""
        return tuple(self._one_seen_from(path, group) for group in groups)

    def _one_seen_from(self, path: str, group: _Group) -> Folded:
        prefix = f"{path}." if path else ""
        layers = [
            next((p for p in self.names.get(layer, [layer]) if p.startswith(prefix)), prefix)
            for layer in group.layers
        ]
        tops = (
            p for p in self.names.get(group.top, [group.top]) if p == path or p.startswith(prefix)
        )
        top = next(tops, None)
        if top is not None:
            top = top.removeprefix(prefix) if top != path else ""
        own = tuple(layer.removeprefix(prefix) for layer in layers)
        return Folded(own, group.is_chain, top, group.method)

    def _places(self, path: str, group: _Group) -> Iterator[str]:
        """Yield the names of the children below which a module has parts of a fold elsewhere."""
        prefix = f"{path}." if path else ""
        for layer in group.layers:
            inside = [p for p in self.names.get(layer, [layer]) if p.startswith(prefix)]
            yield from (p.removeprefix(prefix).partition(".")[0] for p in inside[1:])

    def _exact(self, frames: list[Frame]) -> dict[str, Any] | None:
        """Return the plain arguments with which a method gives what it gave, None for none.

        It gives something else where a fold reaches out of it, or holds what it returns.
        """
        if len(frames) != 1:
            return None
        [frame] = frames
        given = nodes_in(frame.output)
        [output] = self.edits.capture.graph.find_nodes(op="output")
        for group in self._folds:
            inside = [node for node in group.nodes if self.edits.inside(node, frame)]
            if inside and len(inside) < len(group.nodes):
                return None
        for step in self.steps:
            hidden = (n for n in given if n in step and output not in self._readers.get(n, ()))
            if any(not step.isdisjoint(self._readers.get(node, ())) for node in hidden):
                return None
        return _plain_arguments(frame)


def _with_options(frames: list[Frame], groups: list[_Group]) -> dict[str, dict[str, Any] | None]:
    """Return the options that a forward was given whose code chooses by them what it runs.

    With others (`pre_logits=True`) it may run some of the layers of a fold alone.
    """
    if len(frames) != 1 or all((g.top, g.method) != (frames[0].path, "forward") for g in groups):
        return {}
    given, forward = _plain_arguments(frames[0]), type(frames[0].module).forward
    chooses = any(branches_on(forward, name) for name in given or ())
    return {"forward": given} if chooses else {}


def _plain_arguments(frame: Frame) -> dict[str, Any] | None:
    try:
        method = getattr(type(frame.module), frame.method)
        bound = signature_of(method).bind(frame.module, *frame.args, **frame.kwargs)
    except (TypeError, ValueError):
        return None
    bound.apply_defaults()
    _, *given = bound.arguments.items()
    if any(nodes_in(value) for _, value in given if not isinstance(value, fx.Node)):
        return None
    return {name: value for name, value in given if not isinstance(value, fx.Node)}


def _reach(reads: frozenset[tuple[str, bool]], folds: Iterable[Folded], others: set[str]) -> bool:
    """Say whether code that reads these children may run a part of a fold by itself.

    Args:
        reads: the children, with whether code does more than call them.
        folds: the folds.
        others: the children that hold parts of folds under another name.
    """
    names = {name for name, _ in reads}
    if not names.isdisjoint(BY_ANY_NAME) or not names.isdisjoint(others):
        return True
    more = {name for name, is_more in reads if is_more}
    for fold in folds:
        for layer in filter(None, fold.layers):
            child, _, rest = layer.partition(".")
            if child in more or (child in names and not rest):
                return True
            is_within = fold.top is not None and f"{fold.top}.".startswith(f"{child}.")
            if child in names and not is_within:
                return True
    return False


@functools.lru_cache(maxsize=1024)
def reads_of_methods(kind: type) -> dict[str, frozenset[tuple[str, bool]]]:
    """Return the methods of a class beside forward, with the children that they may read.

    Each child comes with whether code does more than call it. Torch's own methods are left out,
    also those that a class has its own form of.

    Examples:
        >>> import torch
        >>> reads_of_methods(torch.nn.Sequential)
        {}
    """
    theirs = [base for base in kind.__mro__ if f"{base.__module__}.".startswith("torch.")]
    methods = methods_of(kind)
    found: dict[str, frozenset[tuple[str, bool]]] = {}
    for name in methods:
        own = inspect.getattr_static(kind, name)
        is_plain = isinstance(own, FunctionType | staticmethod)
        if is_plain and name != "forward" and not any(hasattr(base, name) for base in theirs):
            found[name] = frozenset(_reads(name, methods))
    return found


def _reads(name: str, methods: dict[str, list[FunctionType]]) -> set[tuple[str, bool]]:
    found, seen, pending = set[tuple[str, bool]](), set[str](), [name]
    while pending:
        current = pending.pop()
        if current in seen or current == "forward":
            continue
        seen.add(current)
        for function in methods.get(current, ()):
            reads = attributes_of_self(function)
            found.update(reads)
            pending.extend(read for read, _ in reads)
    return found
