"""Write a simplified expression into the graph, in place of the nodes it was lifted from.

A chain keeps its places: the merged layer goes where one of its parts stood and the others become identities, so that no
forward has to change. Anything else becomes new nodes in front of the region's value.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field

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
        self.emitted = Emitted()
        self.made: list[fx.Node] = []
        self.repeated: set[int] = set()

    def run(self, op: Operator) -> Emitted:
        """Write the expression.

        Raises:
            RefusedError: when a value does not fit the model's precision; the graph is then unchanged.
        """
        seen = [id(leaf) for leaf in leaves(op)]
        self.repeated = {leaf for leaf in seen if seen.count(leaf) > 1}
        modules = {id(leaf): self._lower(leaf) for leaf in leaves(op) if self._is_new(leaf)}
        hosts = self._hosts(op)
        if hosts is not None:
            self._write_in_place(op, hosts, modules)
        else:
            self._write_anew(op, modules)
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

    def _write_in_place(
        self, op: Operator, hosts: list[tuple[Operator, fx.Node]], modules: dict[int, nn.Module]
    ) -> None:
        taken = {node for _, node in hosts}
        owners = {self.region.origins[id(leaf)] for leaf in leaves(self.region.op)}
        for leaf, node in hosts:
            if self._is_new(leaf):
                self.editor.replace_module(node, modules[id(leaf)])
                self.emitted.where = self.emitted.where or str(node.target)
        for node in self.region.nodes:
            if node in owners and node not in taken:
                source = node.args[0]
                assert isinstance(source, fx.Node)
                self.editor.bypass(node, source)
        self._retell_shapes(hosts)
        if not self.emitted.where:
            self.emitted.where = str(self.region.root.name)

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

    def _write_anew(self, op: Operator, modules: dict[int, nn.Module]) -> None:
        root = self.region.root
        asked = [n for n in self.region.nodes if n is not root and any(_shape_readers(n))]
        if asked and len(self.region.inputs) > 1:
            raise RefusedError(f"the shape of {asked[0].name} is read before all branches are known")
        value = self._emit(op, None, modules)
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

    def _move_ahead(self, asked: list[fx.Node]) -> None:
        """Compute the new value first of all, since its shape is asked for in between."""
        places = {node: i for i, node in enumerate(asked[0].graph.nodes)}
        first = min((n for n in self.region.nodes if n not in self.made), key=places.__getitem__)
        for node in self.made:
            first.prepend(node)

    def _emit(self, op: Operator, source: fx.Node | None, modules: dict[int, nn.Module]) -> fx.Node:
        if isinstance(op, Input):
            assert isinstance(op.key, fx.Node)
            return op.key
        if isinstance(op, Sequence):
            for part in chain(op):
                source = self._emit(part, source, modules)
            assert source is not None
            return source
        if isinstance(op, Sum):
            terms = [self._emit(part, source, modules) for part in op.parts]
            total = terms[0]
            for term in terms[1:]:
                total = self._call(operator.add, (total, term))
            return total
        if isinstance(op, Concat):
            terms = [self._emit(part, source, modules) for part in op.parts]
            if self.region.rank is None:
                raise RefusedError("the channel axis is unknown; pass example_inputs")
            return self._call(torch.cat, (terms, -1 - self.region.rank))
        assert source is not None
        return source if isinstance(op, Identity) else self._emit_leaf(op, source, modules)

    def _emit_leaf(self, op: Operator, source: fx.Node, modules: dict[int, nn.Module]) -> fx.Node:
        if not self._is_new(op):
            return self._reuse(self.region.origins[id(op)], source)
        name = _NAMES.get(type(op).__name__, "reparam")
        node = self.editor.insert_module(
            modules[id(op)], [source], before=self.region.root, name=name
        )
        self.made.append(node)
        before = self.lifter.shapes.get(source)
        self._note(node, op, before, shape_after(op, before))
        return node

    def _reuse(self, node: fx.Node, source: fx.Node) -> fx.Node:
        """Keep an unchanged layer and let it read its new input."""
        old = node.args[0]
        assert isinstance(old, fx.Node)
        if old is not source:
            node.replace_input_with(old, source)
        if node is not self.region.root:
            self.region.root.prepend(node)
            self.made.append(node)
        return node

    def _note(self, node: fx.Node, op: Operator, before: Shape | None, after: Shape | None) -> None:
        if after is not None:
            self.lifter.shapes[node] = after
        self.emitted.macs.append(multiply_adds(op, before, after))
        self.emitted.where = self.emitted.where or str(node.target)

    def _call(self, function: object, args: tuple[object, ...]) -> fx.Node:
        node = self.editor.insert_function(function, args, before=self.region.root)  # type: ignore[arg-type]
        self.made.append(node)
        return node


_NAMES = {
    "Conv": "reparam_conv",
    "Affine": "reparam_scale",
    "AvgPool": "reparam_pool",
    "Pad": "reparam_pad",
    "Select": "reparam_select",
}


def _is_plain(op: Operator) -> bool:
    return not any(isinstance(part, (Sum, Concat)) for part in chain(op))


def _shape_readers(node: fx.Node) -> Iterator[fx.Node]:
    return (user for user in node.users if reads_shape_only(user, node))
