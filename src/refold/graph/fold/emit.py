"""Write a simplified expression into the graph, in place of the nodes it was lifted from."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, fx, nn

from refold.algebra.operator import (
    Affine,
    AvgPool,
    Concat,
    Conv,
    Identity,
    Input,
    Operator,
    Sequence,
    Sum,
    chain,
    leaves,
    sequence,
)
from refold.algebra.shapes import Shape, joined, multiply_adds, shape_after
from refold.errors import RefusedError
from refold.graph.calls import place_of
from refold.graph.copies.modules import submodule
from refold.graph.fold.asked_sizes import Asked, Sizes, size_of, starting
from refold.graph.fold.hosts import Hosts, check_chain, find_hosts, write_chain
from refold.graph.fold.lower import as_call, like_of, lower, name_of_new
from refold.graph.fold.region import Region, nodes_of, reader_of, source_of
from refold.graph.fold.result import Emitted, Key, Result, ranks_of, starts_of
from refold.graph.lift.lifter import Lifter
from refold.graph.surgery.editor import Editor
from refold.graph.surgery.edits import alive
from refold.graph.trace.aliases import AliasGroups
from refold.graph.trace.effects import mutated


class Emitter:
    """Writes one region's new expression; what can go wrong goes wrong before anything is written.

    Args:
        lifter: knows shapes and parameters.
        editor: edits the graph.
        region: what is replaced.
        op: the new expression.

    Raises:
        RefusedError: when a value does not fit the model's precision, or a shape that is read
            would change.
    """

    def __init__(self, lifter: Lifter, editor: Editor, region: Region, op: Operator) -> None:
        self.lifter = lifter
        self.editor = editor
        self.region = region
        self.result = Result(region, op)
        self.emitted = Emitted()
        self.made: list[fx.Node] = []
        self.settled: dict[Key, list[fx.Node]] = {}
        self.asked = Asked(lifter, region, ranks_of(region.op, region.rank))
        self.answers: dict[fx.Node, fx.Node] = {}
        self.waiting: dict[fx.Node, fx.Node | None] = {}
        new = [leaf for leaf in leaves(op) if self.result.is_new(leaf)]
        self.modules = {leaf: self._lower(leaf) for leaf in new if as_call(leaf) is None}
        self.hosts: Hosts | None = find_hosts(lifter, self.result)
        self._check_time()
        self._check_writes()
        if self.hosts is not None:
            check_chain(self.result, self.hosts, self.asked)
        else:
            self.result.check_axes()
            self._check_asked()

    def write(self) -> Emitted:
        """Write the expression into the graph."""
        reason = self.lifter.tainted.get(self.region.root)
        if self.hosts is not None:
            chain = self.lifter, self.editor, self.result, self.hosts, self.modules
            self.emitted = write_chain(*chain)
        else:
            self._write_anew()
        if reason is not None:
            for node in (*self.region.nodes, *self.made):
                self.lifter.taint(node, reason)
        return self.emitted

    def _lower(self, leaf: Operator) -> nn.Module:
        held = [t for node in nodes_of(leaf) for t in self._tensors(node)]
        tensors = [tensor for tensor in held if tensor.is_floating_point()]
        rank = len(leaf.axes) if isinstance(leaf, (Conv, AvgPool)) else self.result.ranks[leaf]
        if rank is None and not _is_number(leaf):
            raise RefusedError("the number of spatial axes is unknown; pass example_inputs")
        return lower(leaf, like_of(tensors or self._all_tensors(leaf), rank or 0))

    def _all_tensors(self, leaf: Operator) -> list[Tensor]:
        """Return what tells the precision where nothing that went into a leaf does."""
        module = self.lifter.capture.module
        found: list[Tensor] = [p for p in module.parameters() if p.is_floating_point()]
        found = found or [b for b in module.buffers() if b.is_floating_point()]
        if found or not isinstance(leaf, (Affine, Conv)):
            return found
        if _is_number(leaf):  # alone, a number takes on the precision of what it meets
            return [torch.empty((), dtype=torch.float64)]
        raise RefusedError("the model has no parameter that would tell the precision of new ones")

    def _tensors(self, node: fx.Node) -> list[Tensor]:
        if node.op == "call_module":
            module = submodule(self.lifter.capture.module, str(node.target))
            return list(module.parameters()) or list(module.buffers())
        constants = self.lifter.constants
        known = ((constants.value(arg), arg) for arg in node.all_input_nodes)
        return [
            value
            for value, arg in known  # what inputs decide has no value, and many sources
            if isinstance(value, Tensor) and constants.is_stored(arg)
        ]

    def _check_time(self) -> None:
        """Refuse to read a value that changes in place between the first call and the last."""
        if self.hosts and self.hosts[0][1] is self.region.nodes[0]:
            return
        groups, first = AliasGroups(self.region.root.graph), min(self.region.nodes)
        for value in self.region.inputs:
            if value in self.lifter.tainted and groups.is_written(value, first, self.region.root):
                raise RefusedError(self.lifter.tainted[value])

    def _check_writes(self) -> None:
        """Refuse to let a call that changes what it reads read a value that others read, too."""
        starts = list(starts_of(self.result.op))
        for value, leaf in starts:
            node = self.region.origin(leaf)
            if node is None or self.result.is_new(leaf) or not mutated(node):
                continue
            if source_of(self.lifter, node) is value:
                continue
            later = AliasGroups(self.region.root.graph).later_readers(value, node)
            readers = [user for user in later if user not in self.region.nodes]
            again = [self.region.root] if [v for v, _ in starts].count(value) > 1 else []
            for reader in (*readers, *again):
                what = f"{place_of(node)} changes {place_of(value)} in place"
                raise RefusedError(f"{what} while {place_of(reader)} reads it")

    # -- sizes that are asked for

    def _check_asked(self) -> None:
        """Find what answers for each value whose size is asked for; refuse where nothing does."""
        if not self.asked.readers:
            return
        kept = {self.region.origin(leaf): leaf for leaf in leaves(self.result.op)}
        sizes: dict[Operator, Sizes] = {}
        whole = size_of(self.result.op, sizes)
        for node in self.asked.readers:
            leaf = kept.get(node)
            if leaf is not None and self.result.is_new(leaf):
                leaf = None
            sized = self._there(node, sizes)
            there = [value for value, size in sized if self.asked.is_answered(node, size)]
            given = whole if leaf is None else sizes[leaf]
            if there:
                self.answers[node] = node if node in there else there[0]
            elif self.asked.is_answered(node, given) and self._may_move():
                self.waiting[node] = None if leaf is None else node
            else:
                does = "remove" if leaf is None else "change"
                raise self.asked.refusal(node, does)

    def _there(
        self, asked: fx.Node, sizes: dict[Operator, Sizes]
    ) -> Iterator[tuple[fx.Node, Sizes]]:
        """Yield what stays as it is, and before whoever asks: inputs, layers after them."""
        for value in self.region.inputs:
            yield value, starting(value)
        start, *parts = chain(self.result.op)
        last = None
        for node, run in groupby(parts if isinstance(start, Input) else (), self.region.origin):
            *_, part = run
            if node is None or self.result.is_new(part) or not (last is None or last < node):
                return
            if all(node < reader for reader in self.asked.readers[asked]):
                yield node, sizes[part]
            last = node

    def _may_move(self) -> bool:
        """Say whether all the new expression can be computed where the old one begins."""
        nodes = self.region.nodes
        first, inside = min(nodes), set(nodes)
        read = {value for node in nodes for value in node.all_input_nodes} - inside
        return all(value < first or value.op == "get_attr" for value in read)

    def _redirect(self, node: fx.Node, value: fx.Node) -> None:
        for reader in self.asked.readers[node]:
            if value is not node and node in reader.all_input_nodes and alive(reader):
                self.editor.reread(reader, node, value)

    def _move_ahead(self) -> None:
        """Compute the new value first of all, since its size is asked for in between."""
        places = {node: i for i, node in enumerate(self.region.root.graph.nodes)}
        left = (n for n in self.region.nodes if n not in self.made and alive(n))
        first = min(left, key=places.__getitem__)
        for node in self.made:
            for value in node.all_input_nodes:
                if value.op == "get_attr" and places[value] > places[first]:
                    first.prepend(value)
            first.prepend(node)

    def _write_anew(self) -> None:
        root = self.region.root
        for node, answer in self.answers.items():
            self._redirect(node, answer if alive(answer) else self.editor.edits.now(answer))
        value = self._emit(self.result.op, None)
        self._tell_places()
        if self.waiting:
            self._move_ahead()
        for node, answer in self.waiting.items():
            self._redirect(node, answer or value)
        if value is not root:
            self.editor.replace(root, value)
        gone = (n for n in self.region.nodes if n not in self.made and n is not value)
        self.editor.discard([node for node in gone if alive(node)])
        shape = self.lifter.shapes.get(root)
        if shape is not None:
            self.lifter.shapes[value] = shape
        self.editor.sweep()

    def _emit(self, op: Operator, source: fx.Node | None) -> fx.Node:
        if isinstance(op, Input):
            assert isinstance(op.key, fx.Node)
            # Where several regions are written at once, it may be another one's result by now.
            return op.key if alive(op.key) else self.editor.edits.now(op.key)
        if isinstance(op, Sequence):
            for part in chain(op):
                source = self._emit(part, source)
            assert source is not None
            return self._settle(op, source)
        if isinstance(op, Sum):
            return self._settle(op, self._add(op, source))
        if isinstance(op, Concat):
            terms = [self._emit(part, source) for part in op.parts]
            return self._settle(op, self._lay(op, terms))
        assert source is not None
        return source if isinstance(op, Identity) else self._emit_leaf(op, source)

    def _add(self, op: Sum, source: fx.Node | None) -> fx.Node:
        """Add terms; a factor that came from a subtraction stays one."""
        terms = sorted((self._factor(part) for part in op.parts), key=lambda term: term[0] != 1)
        if terms[0][0] != 1:
            terms[0] = 1.0, op.parts[0]
        values = [(factor, self._emit(part, source)) for factor, part in terms]
        place, total = self._anchor(op), values[0][1]
        for factor, value in values[1:]:
            if abs(factor) == 1:
                call = operator.add if factor == 1 else operator.sub
                total = self._call(call, (total, value), place)
            else:
                total = self._call(torch.add, (total, value), place, alpha=factor)
            total.meta["even"] = True  # only sums of one shape are lifted, so only such are written
        self._tell_shape(total, joined([self.lifter.shapes.get(value) for _, value in values]))
        return total

    def _factor(self, op: Operator) -> tuple[float, Operator]:
        """Return the factor with which the old code added a branch, and the branch without it."""
        *rest, last = chain(op)
        node = self.region.origin(last)
        scale = last.scale if node in self.region.joins and isinstance(last, Affine) else None
        return (1.0, op) if scale is None or scale.ndim else (float(scale), sequence(*rest))

    def _lay(self, op: Concat, terms: list[fx.Node]) -> fx.Node:
        rank = self.result.ranks[op]
        assert rank is not None  # else it was refused before anything was written
        value = self._call(torch.cat, (terms, -1 - rank), self._anchor(op))
        self._tell_shape(value, joined([self.lifter.shapes.get(term) for term in terms], rank))
        return value

    def _tell_shape(self, node: fx.Node, shape: Shape | None) -> None:
        if shape is not None:
            self.lifter.shapes[node] = shape

    def _call(
        self, function: object, args: tuple[Any, ...], place: fx.Node, **kwargs: Any
    ) -> fx.Node:
        terms = [a for item in args for a in (item if isinstance(item, list) else [item])]
        before = _later([term for term in terms if isinstance(term, fx.Node)], place)
        node = self.editor.insert_function(function, args, kwargs, before=before)  # type: ignore[arg-type]
        self.made.append(node)
        return node

    def _emit_leaf(self, op: Operator, source: fx.Node) -> fx.Node:
        node = self.region.origin(op)
        if node is not None and not self.result.is_new(op):
            whole = reader_of(self.lifter, node) is node  # not one of several parts of a split
            if whole or source_of(self.lifter, node) is source:
                self._tell_shape(node, shape_after(op, self.lifter.shapes.get(source)))
                return node if source is node else self._reuse(node, source)
            if as_call(op) is None:
                self.modules[op] = self._lower(op)
        if (call := as_call(op)) is not None:
            function, given = call
            node = self._call(function, (source,), self._anchor(op), **given)
            self._tell_shape(node, shape_after(op, self.lifter.shapes.get(source)))
            return node
        before, name = _later([source], self._anchor(op)), name_of_new(op)
        node = self.editor.insert_module(self.modules[op], [source], before=before, name=name)
        self.made.append(node)
        old = self.lifter.shapes.get(source)
        new = shape_after(op, old)
        self._tell_shape(node, new)
        self.emitted.macs.append(multiply_adds(op, old, new))
        self.emitted.where = self.emitted.where or str(node.target)
        return node

    def _reuse(self, node: fx.Node, source: fx.Node) -> fx.Node:
        """Keep an unchanged layer and let it read its new input."""
        old = source_of(self.lifter, node)
        if old is not source:
            self.editor.reread(reader_of(self.lifter, node), old, source)
        if node < source:
            source.append(node)
        self.made.append(node)
        return node

    def _anchor(self, op: Operator) -> fx.Node:
        """Return the first old node that depends on all that went into `op`."""
        nodes = nodes_of(op)
        fitting = (n for n in self.region.nodes if nodes <= self.result.below[n][0] and alive(n))
        return next(fitting, self.region.root)

    def _settle(self, op: Operator, value: fx.Node) -> fx.Node:
        """Note what a new value is made from."""
        if value in self.made:
            self.settled.setdefault(self.result.key_of(op), []).append(value)
        return value

    def _tell_places(self) -> None:
        """Tell the editor which old values new ones are, so that enclosing modules stay whole."""
        for node, value in self.result.places(self.settled):
            if node not in self.made and node is not self.region.root and alive(node):
                self.editor.replace(node, value)


def _is_number(op: Operator) -> bool:
    """Return whether a leaf scales every channel alike, wherever the channel axis lies."""
    return isinstance(op, Affine) and op.channels is None


def _later(sources: list[fx.Node], place: fx.Node) -> fx.Node:
    """Return the node before which a reader of `sources` may stand: `place` if late enough."""
    latest = max(sources)
    return place if latest < place else latest.next
