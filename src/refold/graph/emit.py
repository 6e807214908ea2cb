"""Write a simplified expression into the graph, in place of the nodes it was lifted from.

A chain keeps its places: the merged layer goes where one of its parts stood and the others become identities, so that no
forward has to change. Anything else becomes new nodes in front of the region's value.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
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
)
from refold.errors import RefusedError
from refold.graph.lift import Lifter
from refold.graph.lower import like_of, lower
from refold.graph.region import Region, reads_shape_only
from refold.graph.sizes import Shape, multiply_adds, shape_after
from refold.graph.surgery import Editor
from refold.graph.surgery_edits import alive

Provenance = dict[int, frozenset[fx.Node]]


@dataclass
class Emitted:
    """Where the result of a fold stands and what its new layers cost."""

    where: str = ""
    macs: list[int | None] = field(default_factory=list[int | None])


class Emitter:
    """Writes one region's new expression.

    Args:
        lifter: knows shapes and parameters.
        editor: edits the graph.
        region: what is replaced.
        origin: the nodes that went into each leaf of the new expression.
    """

    def __init__(self, lifter: Lifter, editor: Editor, region: Region, origin: Provenance) -> None:
        self.lifter = lifter
        self.editor = editor
        self.region = region
        self.origin = origin
        self.order = {node: i for i, node in enumerate(region.nodes)}
        self.below = _owners_below(region)
        self.emitted = Emitted()
        self.made: list[fx.Node] = []
        self.op: Operator = region.op
        self.modules: dict[int, nn.Module] = {}
        self.hosts: list[tuple[Operator, fx.Node]] | None = None
        self.repeated: set[int] = set()

    def prepare(self, op: Operator) -> None:
        """Make the new layers and check that the expression can be written; the graph stays as it is.

        Raises:
            RefusedError: when a value does not fit the model's precision, or a shape that is read would change.
        """
        seen = [id(leaf) for leaf in leaves(op)]
        self.repeated = {leaf for leaf in seen if seen.count(leaf) > 1}
        self.op = op
        self.modules = {id(leaf): self._lower(leaf) for leaf in leaves(op) if self._is_new(leaf)}
        self.hosts = self._hosts(op)
        if self.hosts is not None:
            self._check_shapes(self.hosts)
        else:
            self._check_asked(op)

    def write(self) -> Emitted:
        """Write the prepared expression into the graph."""
        if self.hosts is not None:
            self._write_in_place(self.hosts)
        else:
            self._write_anew(self.op)
        return self.emitted

    def _is_new(self, leaf: Operator) -> bool:
        """Whether a leaf needs a layer of its own: a fold made it, or it now stands in several branches."""
        return id(leaf) not in self.region.origins or id(leaf) in self.repeated

    def _lower(self, leaf: Operator) -> nn.Module:
        nodes = self._made_of(leaf)
        tensors = [t for node in nodes for t in self._tensors(node)]
        rank = len(leaf.axes) if isinstance(leaf, (Conv, AvgPool)) else self.region.rank
        if rank is None:
            raise RefusedError("the number of spatial axes is unknown; pass example_inputs")
        return lower(leaf, like_of(tensors or list(self.lifter.capture.module.parameters()), rank))

    def _made_of(self, leaf: Operator) -> frozenset[fx.Node]:
        kept = self.region.origins.get(id(leaf))
        return frozenset({kept}) if kept is not None else self.origin[id(leaf)]

    def _tensors(self, node: fx.Node) -> list[Tensor]:
        root = self.lifter.capture.module
        if node.op == "call_module":
            module = root.get_submodule(str(node.target))
            return list(module.parameters()) or list(module.buffers())
        found = [self.lifter.constants.value(arg) for arg in node.all_input_nodes]
        return [value for value in found if isinstance(value, Tensor)]

    # -- a chain keeps its places -------------------------------------------------------------------------

    def _hosts(self, op: Operator) -> list[tuple[Operator, fx.Node]] | None:
        """Return the node each leaf goes to, in order, when both expressions are plain chains."""
        if not all(_is_plain(expression) for expression in (self.region.op, op)):
            return None
        at, hosts = -1, list[tuple[Operator, fx.Node]]()
        for leaf in leaves(op):
            if not self._is_new(leaf):
                node = self.region.origins[id(leaf)]
            else:
                node = self._host(leaf, at)
            if node is None or self.order[node] <= at:
                return None
            at = self.order[node]
            hosts.append((leaf, node))
        return hosts

    def _host(self, leaf: Operator, after: int) -> fx.Node | None:
        nodes = sorted(self._made_of(leaf), key=lambda node: self.order[node])
        calls = [n for n in nodes if n.op == "call_module" and self.order[n] > after]
        kind = "Affine" if isinstance(leaf, Affine) else "Conv"
        same = [n for n in calls if kind == "Affine" or self._is_layer(n)]
        return next(iter(same), None)

    def _is_layer(self, node: fx.Node) -> bool:
        module = self.lifter.capture.module.get_submodule(str(node.target))
        return getattr(module, "weight", None) is not None and hasattr(module, "bias") and (
            hasattr(module, "in_channels") or hasattr(module, "in_features")
        )

    def _owners(self) -> set[fx.Node]:
        return {self.region.origins[id(leaf)] for leaf in leaves(self.region.op)}

    def _write_in_place(self, hosts: list[tuple[Operator, fx.Node]]) -> None:
        gone = self._owners() - {node for _, node in hosts}
        for leaf, node in hosts:
            if self._is_new(leaf):
                self.editor.replace_module(node, self.modules[id(leaf)])
                self.emitted.where = self.emitted.where or str(node.target)
        for node in self.region.nodes:
            if node in gone and alive(node):
                source = node.args[0]
                assert isinstance(source, fx.Node)
                self.editor.bypass(node, source)
        self._retell_shapes(hosts)
        if not self.emitted.where:
            self.emitted.where = str(self.region.root.name)

    def _check_shapes(self, hosts: list[tuple[Operator, fx.Node]]) -> None:
        """Refuse when somebody asks for a shape that would change."""
        old = {self.region.origins[id(leaf)]: leaf for leaf in leaves(self.region.op)}
        for leaf, node in hosts:
            if any(_shape_readers(node)) and not _same_shape(old[node], leaf):
                raise RefusedError(f"the shape of {node.name} is read, and the fold would change it")
        for node in self._owners() - {node for _, node in hosts}:
            if any(_shape_readers(node)) and not isinstance(old[node], Affine):
                raise RefusedError(f"the shape of {node.name} is read, and the fold removes it")

    def _retell_shapes(self, hosts: list[tuple[Operator, fx.Node]]) -> None:
        for leaf, node in hosts:
            source = node.args[0]
            before = self.lifter.shapes.get(source) if isinstance(source, fx.Node) else None
            after = shape_after(leaf, before) if self._is_new(leaf) else self.lifter.shapes.get(node)
            if after is not None:
                self.lifter.shapes[node] = after
            if self._is_new(leaf):
                self.emitted.macs.append(multiply_adds(leaf, before, after))

    # -- anything else becomes new nodes ------------------------------------------------------------------

    def _write_anew(self, op: Operator) -> None:
        root = self.region.root
        self._redirect_shapes_of_scales()
        asked = self._asked(op)
        value = self._emit(op, None)
        if asked:
            self._move_ahead(asked)
        for node in asked:
            for reader in list(_shape_readers(node)):
                reader.replace_input_with(node, value)
        if value is not root:
            self.editor.replace(root, value)
        self.editor.discard([n for n in self.region.nodes if n not in self.made and n is not value])
        shape = self.lifter.shapes.get(root)
        if shape is not None:
            self.lifter.shapes[value] = shape
        self.editor.sweep()

    def _check_asked(self, op: Operator) -> None:
        scales = {self.region.origins[id(x)] for x in leaves(self.region.op) if isinstance(x, Affine)}
        asked = [node for node in self._asked(op) if node not in scales]
        if asked and (len(self.region.inputs) > 1 or not self.region.same_shape.issuperset(asked)):
            raise RefusedError(f"the shape of {asked[0].name} is read, and the fold would change it")

    def _asked(self, op: Operator) -> list[fx.Node]:
        """Return the nodes that will be gone and whose shape somebody asks for."""
        kept = {self.region.origins.get(id(leaf)) for leaf in leaves(op)}
        gone = (n for n in self.region.nodes if n is not self.region.root and n not in kept)
        return [node for node in gone if alive(node) and any(_shape_readers(node))]

    def _redirect_shapes_of_scales(self) -> None:
        """Let what asks for the shape of a scale's value ask for that of its source, which is the same."""
        for leaf in leaves(self.region.op):
            node = self.region.origins[id(leaf)]
            if isinstance(leaf, Affine) and node is not self.region.root and alive(node):
                for reader in list(_shape_readers(node)):
                    source = node.args[0]
                    assert isinstance(source, fx.Node)
                    reader.replace_input_with(node, source)

    def _move_ahead(self, asked: list[fx.Node]) -> None:
        """Compute the new value first of all, since its shape is asked for in between."""
        places = {node: i for i, node in enumerate(asked[0].graph.nodes)}
        first = min((n for n in self.region.nodes if n not in self.made), key=places.__getitem__)
        for node in self.made:
            first.prepend(node)

    def _emit(self, op: Operator, source: fx.Node | None) -> fx.Node:
        if isinstance(op, Input):
            assert isinstance(op.key, fx.Node)
            return op.key
        if isinstance(op, Sequence):
            for part in chain(op):
                source = self._emit(part, source)
            assert source is not None
            return self._settle(op, source)
        if isinstance(op, (Sum, Concat)):
            terms = [self._emit(part, source) for part in op.parts]
            return self._settle(op, self._join(op, terms))
        assert source is not None
        return source if isinstance(op, Identity) else self._emit_leaf(op, source)

    def _join(self, op: Sum | Concat, terms: list[fx.Node]) -> fx.Node:
        place = self._anchor(op)
        if isinstance(op, Sum):
            total = terms[0]
            for term in terms[1:]:
                total = self._call(operator.add, (total, term), place)
            return total
        if self.region.rank is None:
            raise RefusedError("the channel axis is unknown; pass example_inputs")
        return self._call(torch.cat, (terms, -1 - self.region.rank), place)

    def _emit_leaf(self, op: Operator, source: fx.Node) -> fx.Node:
        if not self._is_new(op):
            return self._reuse(self.region.origins[id(op)], source)
        name = _NAMES.get(type(op).__name__, "reparam")
        before = self._after([source], self._anchor(op))
        node = self.editor.insert_module(self.modules[id(op)], [source], before=before, name=name)
        self.made.append(node)
        shape = self.lifter.shapes.get(source)
        self._note(node, op, shape, shape_after(op, shape))
        return node

    def _reuse(self, node: fx.Node, source: fx.Node) -> fx.Node:
        """Keep an unchanged layer and let it read its new input."""
        old = node.args[0]
        assert isinstance(old, fx.Node)
        if old is not source:
            node.replace_input_with(old, source)
        if node < source:
            source.append(node)
        self.made.append(node)
        return node

    def _nodes_of(self, op: Operator) -> frozenset[fx.Node]:
        return frozenset(node for leaf in leaves(op) for node in self._made_of(leaf))

    def _anchor(self, op: Operator) -> fx.Node:
        """Return the first old node that depends on all that went into `op`: the new one goes there."""
        nodes = self._nodes_of(op)
        fitting = (n for n in self.region.nodes if nodes <= self.below[n] and alive(n))
        return next(fitting, self.region.root)

    def _after(self, sources: list[fx.Node], place: fx.Node) -> fx.Node:
        """Return the node before which a reader of `sources` may stand, `place` if it comes late enough."""
        latest = max(sources)
        return place if latest < place else latest.next

    def _settle(self, op: Operator, value: fx.Node) -> fx.Node:
        """Tell the editor which old value the new one is, so that enclosing modules stay whole."""
        nodes = self._nodes_of(op)
        if value in self.made:
            for node in self.region.nodes:
                kept = node in self.made or node is self.region.root or not alive(node)
                if self.below[node] == nodes and not kept:
                    self.editor.replace(node, value)
        return value

    def _note(self, node: fx.Node, op: Operator, before: Shape | None, after: Shape | None) -> None:
        if after is not None:
            self.lifter.shapes[node] = after
        self.emitted.macs.append(multiply_adds(op, before, after))
        self.emitted.where = self.emitted.where or str(node.target)

    def _call(self, function: object, args: tuple[Any, ...], place: fx.Node) -> fx.Node:
        terms = [a for item in args for a in (item if isinstance(item, list) else [item])]
        before = self._after([term for term in terms if isinstance(term, fx.Node)], place)
        node = self.editor.insert_function(function, args, before=before)  # type: ignore[arg-type]
        self.made.append(node)
        return node


_NAMES = {
    "Conv": "reparam_conv",
    "Affine": "reparam_scale",
    "AvgPool": "reparam_pool",
    "Pad": "reparam_pad",
    "Select": "reparam_select",
}


def _owners_below(region: Region) -> dict[fx.Node, frozenset[fx.Node]]:
    """Return, for each node of a region, the nodes with leaves that its value is made of."""
    owners = set(region.origins.values())
    below: dict[fx.Node, frozenset[fx.Node]] = {}
    for node in region.nodes:
        parts = (below[source] for source in node.all_input_nodes if source in below)
        own = frozenset({node}) if node in owners else frozenset[fx.Node]()
        below[node] = own.union(*parts)
    return below


def _is_plain(op: Operator) -> bool:
    return not any(isinstance(part, (Sum, Concat)) for part in chain(op))


def _same_shape(old: Operator, new: Operator) -> bool:
    """Return whether two leaves on one input surely give values of one shape."""
    if isinstance(old, Conv) and isinstance(new, Conv):
        slack = [(a.stride, a.slack) for a in old.axes] == [(a.stride, a.slack) for a in new.axes]
        return slack and old.out_channels == new.out_channels and old.transposed == new.transposed
    return isinstance(old, Affine) and isinstance(new, Affine)


def _shape_readers(node: fx.Node) -> Iterator[fx.Node]:
    return (user for user in node.users if reads_shape_only(user, node))
