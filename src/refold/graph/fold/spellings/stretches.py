"""Stretches of a graph that only move, fill and scale numbers, run on numbers of our choice.

A padded map with another border than zeros has many spellings: slices overwritten, parts side by
side, masks. What such code computes is told by running it, at many sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from refold.graph.calls import (
    AFFINE_IN_ALL,
    AFFINE_IN_FIRST,
    FILLS,
    NEVER_GROW,
    PRODUCTS,
    is_question,
    name_of,
)
from refold.graph.copies.modules import submodule
from refold.graph.lift.lifter import Lifter
from refold.graph.lift.modules import lift_module
from refold.graph.lift.piece import Piece
from refold.graph.trace.effects import may_alias, mutated
from refold.graph.trace.frames import leaves, map_tree, nodes_in
from refold.graph.trace.overridden import layer_class

_PADS = tuple(getattr(nn, f"{kind}Pad{n}d") for kind in ("Zero", "Constant") for n in (1, 2, 3))
_SIMPLE = AFFINE_IN_FIRST | AFFINE_IN_ALL | PRODUCTS | FILLS
_MOST_NODES = 64


@dataclass(eq=False)
class Stretch:
    """Calls that follow from one value and from constants, affine in the value.

    Args:
        lifter: what is known about the graph.
        free: values that depend on sizes and constants alone.
        start: the value.
        above: values before it that have its height and width; only their sizes are asked for.
        nodes: the calls, in the order of the graph.
        depends: the value and the calls whose numbers come from it.
    """

    lifter: Lifter
    free: set[fx.Node]
    start: fx.Node
    above: tuple[fx.Node, ...]
    nodes: list[fx.Node] = field(default_factory=list[fx.Node])
    depends: set[fx.Node] = field(default_factory=set[fx.Node])

    def __post_init__(self) -> None:
        self._inside = frozenset[fx.Node]()

    @classmethod
    def behind(
        cls, lifter: Lifter, free: set[fx.Node], start: fx.Node, above: tuple[fx.Node, ...]
    ) -> Stretch:
        """Return the longest stretch behind a value."""
        made = cls(lifter, free, start, above)
        made._grow()
        made._follow()
        return made

    def ends(self) -> Iterator[tuple[list[fx.Node], fx.Node]]:
        """Yield beginnings of the stretch, the longest first, and the one value read later.

        The value that it starts from may be read elsewhere, too, where nothing writes into it.
        """
        for count in range(len(self.nodes), 0, -1):
            head, later = self.nodes[:count], self.nodes[count:]
            inside = {self.start, *self.above, *head}
            read = [node for node in head if node in self.depends]
            read = [node for node in read if not inside.issuperset(node.users)]
            written = {self._root(value) for node in head for value in mutated(node)}
            if len(read) != 1 or self._root(read[0]) is self.start:
                continue
            if self.start in written and not inside.issuperset(self.start.users):
                continue
            own = self._root(read[0])
            if not any(self._root(value) is own for node in later for value in mutated(node)):
                yield head, read[0]

    def run(self, head: list[fx.Node], end: fx.Node, value: Tensor) -> Tensor | None:
        """Return what a beginning of the stretch makes of a value; None where it fails."""
        known: dict[fx.Node, Any] = {self.start: value}
        for node in self.above:
            channels = cast("tuple[int, ...]", self.lifter.shape(node))[1]
            known[node] = value.new_zeros(value.shape[0], channels, *value.shape[2:])
        try:
            for node in head:
                known[node] = self._call(node, known)
        except Exception:  # sizes that the model itself does not take
            return None
        return known[end] if isinstance(known[end], Tensor) else None

    def reach(self) -> int:
        """Return how far from the edges the calls can tell places apart, at most."""
        given = [leaf for node in self.nodes for leaf in leaves((node.args, node.kwargs))]
        outside = {leaf for leaf in given if isinstance(leaf, fx.Node)} - {*self.nodes, self.start}
        constants = [self.lifter.constants.value(node) for node in outside]
        reach = sum(abs(number) for number in (*given, *constants) if isinstance(number, int))
        shape = cast("tuple[int, ...]", self.lifter.shape(self.start))
        for tensor in constants:
            if isinstance(tensor, Tensor):
                by_channel = tensor.numel() == shape[1] and shape[1] in tensor.shape
                reach += 0 if by_channel else max(tensor.shape[2 - len(shape) :], default=0)
                reach += int(tensor.abs().max()) if _is_index(tensor) else 0
        return reach

    # internals

    def _grow(self) -> None:
        pending, seen, found = list[fx.Node](), set[fx.Node](), set[fx.Node]()
        sources = {self.start, *self.above}

        def readers_of(node: fx.Node) -> None:
            for user in node.users:
                if user not in seen and (node not in self.above or is_question(user)):
                    seen.add(user)
                    heappush(pending, user)

        for node in sources:
            readers_of(node)
        while pending and len(found) < _MOST_NODES:
            more = self._with_arguments(heappop(pending), found | sources)
            for node in more or ():
                found.add(node)
                readers_of(node)
        self.nodes = sorted(found)

    def _with_arguments(self, node: fx.Node, known: set[fx.Node]) -> set[fx.Node] | None:
        """Return a call with what it needs besides, None where one of these is not simple."""
        if not _is_simple(self.lifter, node):
            return None
        more = {node}
        for source in node.all_input_nodes:
            if source in known | more or self.lifter.constants.value(source) is not None:
                continue
            is_free = source in self.free
            before = self._with_arguments(source, known | more) if is_free else None
            if before is None or len(more) + len(before) > _MOST_NODES:
                return None
            more |= before
        return more

    def _follow(self) -> None:
        """Find out which calls depend on the value; end before one that is not affine in it."""
        self.depends.add(self.start)
        inside = self._inside = frozenset(self.nodes)
        for at, node in enumerate(self.nodes):
            read = _numbers_read(node)
            given = [value for value in read if self._root(value) in self.depends]
            changed = [self._root(value) for value in mutated(node)]
            if not inside.issuperset(changed) or (given and not self._is_affine(node, given)):
                self.nodes = self.nodes[:at]
                return
            if given:
                self.depends.update((node, *changed))

    def _is_affine(self, node: fx.Node, given: list[fx.Node]) -> bool:
        """Say whether a call is affine in those of its arguments that depend on the value."""
        name = _name(node)
        if node.op == "call_module":
            layer = submodule(self.lifter.capture.module, str(node.target))
            return layer_class(layer) in _PADS
        if name in PRODUCTS:
            return len(given) == 1 and (given == [node.args[0]] or "div" not in name)
        if name in ("where", "setitem"):
            chooses = node.args[0] if name == "where" else node.args[1]
            return not set(nodes_in(chooses)) & set(given)
        return name in AFFINE_IN_ALL or (name in AFFINE_IN_FIRST and given == [node.args[0]])

    def _root(self, node: fx.Node) -> fx.Node:
        """Return the value whose memory a view within the stretch shows."""
        while node in self._inside and node.op != "call_module" and (shared := may_alias(node)):
            node = shared[0]
        return node

    def _call(self, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
        def value(leaf: Any) -> Any:
            if isinstance(leaf, fx.Node) and leaf not in known:
                known[leaf] = self.lifter.constants.value(leaf)
            return known[leaf] if isinstance(leaf, fx.Node) else leaf

        args = cast("tuple[Any, ...]", map_tree(value, node.args))
        kwargs = cast("dict[str, Any]", map_tree(value, dict(node.kwargs)))
        if node.op == "call_method":
            return getattr(args[0], cast(str, node.target))(*args[1:], **kwargs)
        if node.op == "call_module":
            return submodule(self.lifter.capture.module, str(node.target))(*args, **kwargs)
        return cast(Any, node.target)(*args, **kwargs)


def moves_numbers(lifter: Lifter, node: fx.Node) -> bool:
    """Say whether a call gives numbers that it is given, moved, scaled or with others around."""
    if node.op == "call_module":
        return layer_class(submodule(lifter.capture.module, str(node.target))) in _PADS
    return not is_question(node) and _is_simple(lifter, node)


def growing(lifter: Lifter) -> set[fx.Node]:
    """Return the values that such calls may put into a larger one, told by the calls' names."""
    found = set[fx.Node]()
    for node in reversed(lifter.capture.graph.nodes):
        if node.op == "call_module":
            moves = layer_class(submodule(lifter.capture.module, str(node.target))) in _PADS
            grows = moves
        else:
            name = _name(node) if node.op in ("call_function", "call_method") else ""
            moves = name in _SIMPLE and not is_question(node)
            grows = moves and name not in NEVER_GROW
        if grows or (moves and node in found):
            found.update(node.all_input_nodes)
    return found


def free_values(lifter: Lifter) -> set[fx.Node]:
    """Return the values that depend on sizes and constants alone, as far as they are simple."""
    found = set[fx.Node]()
    for node in lifter.capture.graph.nodes:
        is_known = is_question(node) or lifter.constants.value(node) is not None
        is_next = found.issuperset(node.all_input_nodes)
        if is_known or (is_next and _is_simple(lifter, node)):
            found.add(node)
    return found


def _is_simple(lifter: Lifter, node: fx.Node) -> bool:
    if node.op in ("call_function", "call_method"):
        return is_question(node) or ("out" not in node.kwargs and _name(node) in _SIMPLE)
    path = str(node.target)
    if node.op != "call_module" or path in lifter.capture.pinned:
        return False
    if len(node.args) != 1 or len(node.all_input_nodes) != 1 or node.kwargs:
        return False
    layer = submodule(lifter.capture.module, path)
    return isinstance(lift_module(layer, node.all_input_nodes[0], None), Piece)


def _is_index(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.dtype == torch.bool) and tensor.numel() > 0


def _numbers_read(node: fx.Node) -> list[fx.Node]:
    """Return the arguments of which a call reads the numbers, not the size alone."""
    name = _name(node)
    if is_question(node):
        return []
    if name.endswith("_like") or name.startswith("new_"):
        return nodes_in((node.args[1:], node.kwargs))
    return nodes_in(node.args[:1] if name.endswith("_as") else (node.args, node.kwargs))


def _name(node: fx.Node) -> str:
    """Return the name of a call, the same for one that changes its argument in place."""
    if isinstance(node.target, torch._ops.OpOverload):
        return ""
    name = name_of(node)
    return name.strip("_") if name.startswith("__") else name.removesuffix("_")
