"""Another run of the same code, laid beside the recorded one: what belongs together in both?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from operator import methodcaller
from typing import Any

import torch
from torch import Tensor, fx, nn

from refold.graph.trace.frames import Frame, ancestors, frame_of, leaves
from refold.graph.trace.other_runs.more_calls import taken_apart, touched
from refold.graph.trace.recorder.recorder import Recorder
from refold.graph.trace.recording import Again, Arguments

Item = fx.Node | Frame


@dataclass(eq=False)
class Snapshot:
    """A graph as it was recorded, whatever a fold makes of it later."""

    order: list[fx.Node]
    home: dict[fx.Node, Frame]
    args: dict[fx.Node, tuple[Any, dict[str, Any]]]
    readers: dict[fx.Node, frozenset[fx.Node]]

    @classmethod
    def of(cls, graph: fx.Graph) -> Snapshot:
        """Take the snapshot."""
        order = list(graph.nodes)
        return cls(
            order,
            {node: frame_of(node) for node in order},
            {node: (node.args, dict(node.kwargs)) for node in order},
            {node: frozenset(node.users) for node in order},
        )

    def take(self, graph: fx.Graph) -> None:
        """Take it again, for all who hold it."""
        vars(self).update(vars(Snapshot.of(graph)))

    def items(self) -> dict[Frame, list[Item]]:
        """Return for every frame its own nodes and the frames it calls, in order."""
        found: dict[Frame, list[Item]] = {}
        placed = set[Frame]()
        for node in self.order:
            below: Item = node
            for frame in ancestors(self.home[node]):
                found.setdefault(frame, []).append(below)
                if frame in placed:
                    break
                placed.add(frame)
                below = frame
        return found


class Variant:
    """Another run, laid beside the recorded one.

    Args:
        what: how it differs, for a refusal.
        first: the recorded graph.
        root: its root frame.
        other: the recorder of the other run.
    """

    def __init__(self, what: str, first: Snapshot, root: Frame, other: Recorder) -> None:
        self.what, self.first = what, first
        self.second = Snapshot.of(other.graph)
        self.same: dict[Item, Item] = {}
        self._passed: dict[fx.Node, bool] = {}  # of steady parts; whether a part gives it
        self.differs: dict[Frame, str] = {}
        self._items, self._others = first.items(), self.second.items()
        self._roots, self._shapes = (root.module, other.root), other.shapes
        self._align(root, other.root_frame)
        self._align_elsewhere()
        self._matched = matched = set(self.same.values())
        alone = (node for node in self.second.order if node not in matched and _is_wider(node))
        self._wider = {node: node.all_input_nodes[0] for node in alone}
        for frame in [root, *self._frames()]:
            self._compare(frame)
        del self._items, self._others
        unmatched = [node for node in self.second.order if node not in matched]
        self._alone = set(map(_key, unmatched))
        self._again = touched(other.root, (n for n in unmatched if not _is_constant(n)))

    def shape(self, node: fx.Node) -> tuple[int, ...] | None:
        """Return the shape that a value has in the other run."""
        other = self.same.get(node)
        if not isinstance(other, fx.Node) or self._passed.get(node) is False:
            return None
        return self._shapes.get(other)

    def are_alike(self, one: fx.Node, two: fx.Node, *, but: int) -> bool:
        """Say whether two values have one shape in the other run.

        Args:
            one: a recorded value.
            two: another one.
            but: the axis that does not matter.
        """
        first, second = self.shape(one), self.shape(two)
        if first is None or second is None or len(first) != len(second):
            return False
        return (*first[:but], *first[but + 1 :]) == (*second[:but], *second[but + 1 :])

    def _frames(self) -> list[Frame]:
        return [item for item in self.same if isinstance(item, Frame) and item.parent is not None]

    def _align(self, root: Frame, other: Frame) -> None:
        pending = [(root, other)]
        while pending:
            frame, match = pending.pop()
            self.same[frame] = match
            ours, theirs = self._items.get(frame, []), self._others.get(match, [])
            keys, others = [_key(i) for i in ours], [_key(i) for i in theirs]
            if keys == others:
                pairs = list(zip(ours, theirs, strict=True))
            else:
                self.differs.setdefault(frame, self.what)
                found = SequenceMatcher(None, keys, others, autojunk=False).get_matching_blocks()
                pairs = [(ours[a + i], theirs[b + i]) for a, b, n in found for i in range(n)]
            for one, two in pairs:
                self.same[one] = two
                if isinstance(one, Frame) and isinstance(two, Frame):
                    pending.append((one, two))
                elif isinstance(one, Frame):
                    self._pass(one, two)

    def _pass(self, frame: Frame, match: Item) -> None:
        """Let one call of the other run stand for all calls of a steady part."""
        pending = [*self._items.get(frame, [])]
        while pending:
            item = pending.pop()
            if isinstance(item, Frame):
                pending.extend(self._items.get(item, []))
                continue
            self.same[item] = match
            self._passed[item] = item is frame.output

    def _align_elsewhere(self) -> None:
        """Match calls of one module that the other run makes at another place."""
        taken = {id(match) for match in self.same.values()}
        ours = _called_once(frame for frame in self._items if frame not in self.same)
        theirs = _called_once(frame for frame in self._others if id(frame) not in taken)
        for key, frame in ours.items():
            if key in theirs and frame not in self.same:
                self._align(frame, theirs[key])

    def _compare(self, frame: Frame) -> None:
        match = self.same[frame]
        passed = self.second.args[match] if isinstance(match, fx.Node) else None
        if frame.parent is not None:
            ours, theirs = (frame.args, frame.kwargs), passed or (match.args, match.kwargs)
            if not self._equal(ours, theirs):
                self.differs.setdefault(frame.parent, self.what)
                if not self._nested_nodes_only(ours, theirs):
                    self.differs.setdefault(frame, self.what)
        if isinstance(match, fx.Node):
            return
        if not self._equal(frame.output, match.output):
            self.differs.setdefault(frame, self.what)
        for item in self._items.get(frame, []):
            if isinstance(item, fx.Node) and not self.reads_same(item):
                self.differs.setdefault(frame, self.what)

    def reads_same(self, node: fx.Node) -> bool:
        """Say whether a call has the same arguments in both runs."""
        other = self.same.get(node)
        if not isinstance(other, fx.Node):
            return False
        args, others = self.first.args[node], self.second.args[other]
        return node in self._passed or self._equal(args, others)

    def counts_differ(self) -> bool:
        """Say whether a call gives more values, or fewer, in the other run (`x.unbind(-1)`)."""
        several = (n for n in self.first.order if "length" in n.meta and n not in self._passed)
        pairs = ((node, self.same.get(node)) for node in several)
        return any(
            isinstance(other, fx.Node) and node.meta["length"] != other.meta.get("length")
            for node, other in pairs
        )

    def read_by_same(self, node: fx.Node) -> bool:
        """Say whether a value has the same readers in both runs."""
        other = self.same.get(node)
        if not isinstance(other, fx.Node) or self._passed.get(node) is False:
            return node in self._passed
        readers: set[object] = {self.same.get(reader) for reader in self.first.readers[node]}
        if node in self._passed:  # within the part they are the same
            readers.discard(other)
        return readers == set[object](self._readers(other))

    def _readers(self, other: fx.Node) -> Iterator[fx.Node]:
        """Yield what reads a value in the other run, a wider copy of it that only it makes, too."""
        for reader in self.second.readers[other]:
            if reader in self._wider:
                yield from self._readers(reader)
            elif not (_asks_kind(reader) and reader not in self._matched):
                yield reader

    def _equal(self, ours: Any, theirs: Any) -> bool:
        first, second = leaves(ours), leaves(theirs)
        if len(first) != len(second):
            return False
        return all(map(self._equal_leaf, first, second))

    def _equal_leaf(self, one: Any, two: Any) -> bool:
        if isinstance(one, fx.Node) and isinstance(two, fx.Node):
            two = self._cast_from(two)
            return self.same.get(one) is two and _holds_same(one, two)
        if type(one) is not type(two):
            return False
        return self._is_same_module(one, two) or _is_equal(one, two) or _are_alike(one, two)

    def _cast_from(self, node: fx.Node) -> fx.Node:
        while node in self._wider:
            node = self._wider[node]
        return node

    def _is_same_module(self, one: Any, two: Any) -> bool:
        """Say whether two modules stand in one place, each in the copy that its run was made on."""
        if not isinstance(one, nn.Module) or not isinstance(two, nn.Module):
            return False
        first, second = self._roots
        places = {path for path, module in first.named_modules() if module is one}
        return any(module is two and path in places for path, module in second.named_modules())

    def _nested_nodes_only(self, ours: Any, theirs: Any) -> bool:
        plain = [leaf for leaf in leaves(ours) if not isinstance(leaf, fx.Node)]
        others = [leaf for leaf in leaves(theirs) if not isinstance(leaf, fx.Node)]
        return len(plain) == len(others) and all(
            self._is_same_module(a, b) or _is_equal(a, b)
            for a, b in zip(plain, others, strict=True)
        )

    def _given_same(self, node: fx.Node) -> bool:
        """Say whether a call is given the same numbers and constants, whatever values it reads."""
        other = self.same.get(node)
        if not isinstance(other, fx.Node) or node in self._passed:
            return True  # the other run does without it, or does the same
        ours, theirs = leaves(self.first.args[node]), leaves(self.second.args[other])
        return len(ours) == len(theirs) and all(map(self._is_same_given, ours, theirs))

    def _is_same_given(self, one: Any, two: Any) -> bool:
        if isinstance(one, fx.Node) and isinstance(two, fx.Node):
            return _holds_same(one, self._cast_from(two))
        return self._equal_leaf(one, two)

    def _runs_elsewhere(self, node: fx.Node) -> bool:
        """Say whether the other run calls a layer, or reads a weight, at another place only."""
        is_kept = node.op in ("call_module", "get_attr") and not _is_constant(node)
        return is_kept and node not in self.same and _key(node) in self._alone

    def _place(self, node: fx.Node) -> str:
        is_kept = node.op in ("call_module", "get_attr")
        return str(node.target) if is_kept else self.first.home[node].path

    def objection(self, nodes: list[fx.Node]) -> str | None:
        """Return why these calls cannot be joined, if this run does not join them."""
        chosen = set(nodes)
        if not all(map(self._given_same, nodes)) or any(map(self._runs_elsewhere, nodes)):
            return self.what
        if self._again and taken_apart(self._again, [*map(self._place, nodes)]):
            return self.what
        for node in nodes:
            inner = [reader for reader in self.first.readers[node] if reader in chosen]
            if not inner:
                continue
            runs = [n for n in (node, *inner) if n in self.same]
            if not runs:
                continue  # the whole of it is left out
            if not self.read_by_same(node) or not all(map(self.reads_same, inner)):
                return self.what
        return None


_CHOICES = frozenset(
    {"chunk", "flip", "getitem", "index_select", "narrow", "slice", "split", "tensor_split"}
)


def picks(node: fx.Node) -> bool:
    """Say whether a call picks positions or items of a value."""
    name = getattr(node.target, "__name__", node.target)
    return node.op in ("call_function", "call_method") and name in _CHOICES


def note_varying(recorder: Recorder, first: Snapshot, others: Iterable[Variant]) -> None:
    """Note at calls that choose along an axis which axes of their input have other sizes.

    They are counted from the last one: a choice of positions is none of channels.
    """
    runs = list(others)
    for node in filter(picks, first.order):
        source = next(iter(node.all_input_nodes), node)
        shape = recorder.shapes.get(source, ())
        node.meta["varies"] = {
            len(shape) - 1 - axis
            for other in map(methodcaller("shape", source), runs)
            if other is not None and len(other) == len(shape)
            for axis in range(len(shape))
            if other[axis] != shape[axis]
        }


def _called_once(frames: Iterable[Frame]) -> dict[tuple[Any, ...], Frame]:
    found: dict[tuple[Any, ...], list[Frame]] = {}
    for frame in frames:
        found.setdefault(_key(frame), []).append(frame)
    return {key: calls[0] for key, calls in found.items() if len(calls) == 1}


def _key(item: Item) -> tuple[Any, ...]:
    if isinstance(item, Frame):
        return ("frame", item.path, item.method)
    if item.meta.get("steady"):
        return ("frame", item.target, "forward")
    if _is_constant(item):
        return (item.op,)
    return (item.op, item.target)


def _holds_same(one: fx.Node, two: fx.Node) -> bool:
    """Say whether two nodes hold the same numbers, as far as they are constants of the code."""
    first, second = one.meta.get("stored"), two.meta.get("stored")
    if first is second or not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return first is second
    if one.target == two.target and not _is_constant(one):
        return True
    if first.shape != second.shape or first.is_meta or second.is_meta:
        return first.shape == second.shape
    exact = first.dtype == second.dtype
    if exact or not first.is_floating_point():
        return torch.equal(first, second)
    return torch.allclose(first.double(), second.double(), rtol=1e-2)


def _is_wider(node: fx.Node) -> bool:
    """Say whether a call gives the same floating-point numbers in a precision that holds them."""
    if node.op != "call_method" or node.target not in ("float", "double", "to", "type_as"):
        return False
    before, after = _dtype(node.all_input_nodes[0]), _dtype(node)
    if before is None or after is None:
        return False
    is_float = before.is_floating_point and after.is_floating_point
    return is_float and (before == after or after.itemsize > before.itemsize)


def _dtype(node: fx.Node) -> torch.dtype | None:
    stored = node.meta.get("stored")
    return stored.dtype if isinstance(stored, Tensor) else node.meta.get("dtype")


def _asks_kind(node: fx.Node) -> bool:
    return node.target is getattr and node.args[1] in ("dtype", "device")


def _is_constant(node: fx.Node) -> bool:
    return node.op == "get_attr" and "_tensor_constant" in str(node.target)


def _are_alike(one: Any, two: Any) -> bool:
    """Say whether two objects made anew in each run hold the same, their tensors aside."""
    if isinstance(one, nn.Module | type) or type(one).__eq__ is not object.__eq__:
        return False
    if not hasattr(one, "__dict__") or vars(one).keys() != vars(two).keys():
        return False
    ours, theirs = leaves(vars(one)), leaves(vars(two))
    if len(ours) != len(theirs):
        return False
    pairs = zip(ours, theirs, strict=True)
    return all(isinstance(a, Tensor) or _is_equal(a, b) for a, b in pairs)


def _is_equal(one: Any, two: Any) -> bool:
    try:
        return one is two or bool(one == two)
    except (RuntimeError, TypeError, ValueError):
        return False


@dataclass(frozen=True, eq=False)
class Recorded:
    """One recorded root, and what it takes to record it another time.

    Args:
        recorder: the recorded run.
        again: records anew, given arguments and options of the recorder.
        arguments: what the root was called with.
        first: its graph as it was recorded.
    """

    recorder: Recorder
    again: Again
    arguments: Arguments
    first: Snapshot

    def beside(self, what: str, other: Recorder) -> Variant:
        """Return another run laid beside the recorded one; `what` says how it differs."""
        return Variant(what, self.first, self.recorder.root_frame, other)
