"""A folded graph as nodes of the file: those that nothing touched as they were, the others anew.

A value keeps its name as long as it holds the same numbers. So two files can be compared value by
value, and a name that is gone was a value that the fold removed.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from refold.graph import Capture, HardGate, UnwritableError, nodes_in, place_of, submodule
from refold.onnx_files.lowering import Lowering
from refold.onnx_files.reading import attributes, captured, subgraphs, title
from refold.onnx_files.tensors import dtype_of, to_proto
from refold.onnx_files.translation.layouts import Parts, splits
from refold.onnx_files.translation.network import Network, Opaque, Origin, inner_reads
from refold.ranked import MAX_POOLS

_BENT = frozenset(
    {
        *(F.relu, F.elu, F.celu, F.selu, F.leaky_relu, F.threshold, F.softsign),
        *(F.gelu, F.hardswish, F.softplus, F.mish),
        *(torch.sigmoid, torch.tanh, torch.clamp),
        *(torch.erf, torch.abs, torch.sqrt, torch.exp, torch.pow),
    }
)
"""Functions that no fold moves: what they read today is what they read before.

Where a scale has moved from behind one to the layer in front of it the call says so ("rescaled").
"""
_MOST_STORED = 1 << 20  # bytes that a computed constant may take in the file


@dataclass(eq=False)
class Written:
    """The main graph of the folded file.

    Args:
        nodes: its nodes in order.
        tensors: the new weights.
        changed: whether it differs from what was read.
        made: the values that new or changed nodes make.
        computed: how many nodes became constants.
        large: the numbers of weights that hold none.
        joined: nodes that became one, the sum behind a matrix product or the parts of a split.
    """

    nodes: list[Any]
    tensors: list[Any] = field(default_factory=list[Any])
    changed: bool = False
    made: set[str] = field(default_factory=set[str])
    computed: int = 0
    joined: tuple[tuple[str, ...], ...] = ()
    large: dict[str, Tensor] = field(default_factory=dict[str, Tensor])


class Writer:
    """Writes one edited graph.

    Args:
        network: the graph as it was built.
        capture: the same, edited.
    """

    def __init__(self, network: Network, capture: Capture) -> None:
        self.network, self.capture = network, capture
        graph = network.file.model.graph
        names = set(network.values) | set(network.readers) | {t.name for t in graph.initializer}
        names.update(name for node in graph.node for name in node.output)
        self.lowering = Lowering(network.file.opset, names)
        self.names: dict[fx.Node, str] = {}
        self.same: dict[fx.Node, bool] = {}
        self.leads = {origin.lead for _, origin in self._origins() if origin.lead is not None}
        self.aliases: list[tuple[str, str]] = []
        self.made = set[str]()
        self.called: dict[str, str] = {}
        self.joined: list[tuple[str, ...]] = []
        self.splits = {parts.calls[0]: parts for parts in splits(network, capture)}
        self.inside = {call for parts in self.splits.values() for call in parts.calls}

    def write(self) -> Written:
        """Return the nodes.

        Raises:
            UnwritableError: when the graph holds what ONNX cannot say.
        """
        self._name()
        position = {id(node): at for at, node in enumerate(self.network.file.nodes)}
        entries = [(position[id(node)], node) for node in self._fixed()]
        last = -1
        for call in self.capture.graph.nodes:
            origin = origin_of(call)
            if origin is not None and origin.nodes:
                last = position[id(origin.nodes[-1])]
            pairs = self._emit(call)
            entries.extend((position.get(id(old), last), node) for old, node in pairs)
        entries.extend((position.get(id(node), len(position)), node) for node in self._copies())
        nodes = ordered([node for _, node in sorted(entries, key=lambda entry: entry[0])])
        nodes, computed = self._computed(self._without_unused(nodes))
        used, old = self._without_unused(nodes), self.network.file.nodes
        if len(used) == len(old) and all(a is b for a, b in zip(used, old, strict=True)):
            return Written(used)
        used = self._stored(used)
        return Written(
            used,
            self.lowering.tensors,
            True,
            self.made,
            computed,
            tuple(self.joined),
            self.lowering.large,
        )

    def _copies(self) -> Iterator[Any]:
        """Yield the nodes that give outputs of the file which hold one value a name each."""
        for source, name in self.aliases:
            old = next(node for node in self.network.file.nodes if name in node.output)
            if old.op_type == "Identity" and old.input[0] == source:
                yield old
                continue
            self.lowering.nodes.clear()
            self.lowering.node("Identity", [source], name, self.lowering.fresh(f"{name}_output"))
            yield from self.lowering.nodes

    # names

    def _origins(self) -> Iterator[tuple[fx.Node, Origin]]:
        for call in self.capture.graph.nodes:
            origin = origin_of(call)
            if origin is not None:
                yield call, origin

    def _name(self) -> None:
        for call in self.capture.graph.nodes:
            self.same[call] = self._is_same(call)
            origin = origin_of(call)
            if self.same[call] and origin is not None and origin.output is not None:
                self.names[call] = origin.output
        taken = set(self.names.values())
        wanted = chain(self._read_by_fixed(), self._ends())
        for name, call in wanted:
            if call not in self.names and name not in taken and call not in self.leads:
                self.names[call] = name
                taken.add(name)
        for name, call in self._ends():
            self._end(name, call)
        for call in self.capture.graph.nodes:
            if call not in self.names and call.op not in ("output", "get_attr"):
                self.names[call] = self.lowering.fresh(self._base(call))

    def _end(self, name: str, call: fx.Node) -> None:
        """Let an output of the file be the value that it is today."""
        if self.names[call] == name:
            return
        if call.op == "placeholder" or self.names[call] in self.network.outputs:
            self.aliases.append((self.names[call], name))
        else:
            self.names[call] = name

    def _base(self, call: fx.Node) -> str:
        origin = origin_of(call)
        old = origin.output if origin is not None else None
        return f"{old or str(call.target if call.op == 'call_module' else call.name)}_folded"

    def _ends(self) -> list[tuple[str, fx.Node]]:
        output = next(call for call in self.capture.graph.nodes if call.op == "output")
        names = [name for name in self.network.outputs if name in self.network.values]
        ends = cast("tuple[fx.Node, ...]", output.args[0])
        return list(zip(names, ends, strict=True))

    def _read_by_fixed(self) -> Iterator[tuple[str, fx.Node]]:
        """Yield what calls read that no fold moves, under the names that it had for them."""
        for call, origin in self._origins():
            if is_fixed(call):
                for slot, arg in zip(origin.slots, arguments(call), strict=True):
                    yield name_at(origin, slot), arg

    def _is_same(self, call: fx.Node) -> bool:
        """Say whether a call surely makes the numbers that it made before."""
        origin = origin_of(call)
        if origin is None or self._is_changed(call, origin):
            return False
        if call.op == "placeholder" or is_fixed(call):
            return True
        if not origin.slots:
            return all(self.same.get(arg, True) for arg in call.all_input_nodes)
        return all(
            self.network.values.get(name_at(origin, slot)) is arg and self.same.get(arg, True)
            for slot, arg in zip(origin.slots, arguments(call), strict=True)
        )

    def _is_changed(self, call: fx.Node, origin: Origin) -> bool:
        if call.op != "call_module":
            return False
        return submodule(self.capture.module, str(call.target)) is not origin.module

    # nodes

    def _emit(self, call: fx.Node) -> list[tuple[Any, Any]]:
        """Return the nodes of a call, each with the old one in whose place it stands."""
        if call.op not in ("call_module", "call_function") or call in self.leads:
            return []
        origin = origin_of(call)
        if call in self.inside:
            return self._split(self.splits[call]) if call in self.splits else []
        if origin is not None and not origin.anew and not self._is_changed(call, origin):
            if is_sequence(call):
                return [(origin.nodes[0], self._unrolled(call))]
            if call.target is operator.getitem and is_sequence(call.args[0]):
                return []
            if self._is_gemm(origin):
                return [(origin.nodes[-1], self._gemm(call, origin))]
            kept = (self._kept(node, at, call, origin) for at, node in enumerate(origin.nodes))
            return list(zip(origin.nodes, kept, strict=True))
        self.lowering.nodes.clear()
        self._new(call, origin)
        self.made.add(self.names[call])
        return [(None, node) for node in self.lowering.nodes]

    def _is_gemm(self, origin: Origin) -> bool:
        """Say whether a call is a product of matrices and the sum behind it."""
        if not isinstance(origin.module, nn.Linear) or len(origin.nodes) == 1:
            return False
        rank = self.network.rank(origin.nodes[0].output[0])
        return rank == 2 and origin.module.weight.is_floating_point()

    def _gemm(self, call: fx.Node, origin: Origin) -> Any:
        """Return both as one node that reads the very weights of the file."""
        product, add = origin.nodes
        [source] = [self.names[arg] for arg in arguments(call)]
        bias = next(name for name in add.input if name != product.output[0])
        self.lowering.nodes.clear()
        name = product.name or self.lowering.fresh(f"{product.output[0]}_Gemm")
        self.lowering.node("Gemm", [source, product.input[1], bias], self.names[call], name)
        self.made.add(self.names[call])
        self.joined.append((title(product), title(add)))
        return self.lowering.nodes[0]

    def _split(self, parts: Parts) -> list[tuple[Any, Any]]:
        """Return slices of one value as one node."""
        names = [self.names[call] for call in parts.calls]
        [source] = {self.names[arguments(call)[0]] for call in parts.calls}
        where = tuple(place_of(call) for call in parts.calls)
        self.lowering.nodes.clear()
        self.lowering.split(source, names, parts.axis, parts.sizes, where[0])
        self.made.update(names)
        self.joined.append(where)
        return [(None, node) for node in self.lowering.nodes]

    def _unrolled(self, call: fx.Node) -> Any:
        """Return a split into a sequence as one whose parts have names."""
        source, sizes, axis = cast("tuple[Any, list[int], int]", call.args)
        parts = {user.args[1]: user for user in call.users}
        names = [
            self.names[parts[at]] if at in parts
            else self.lowering.fresh(f"{self.names[call]}_{at}")
            for at in range(len(sizes))
        ]  # fmt: skip
        self.lowering.nodes.clear()
        self.lowering.split(self.names[source], names, axis, sizes, place_of(call))
        self.made.update(names)
        self.joined.append(tuple(place_of(node) for node in (call, *call.users)))
        return self.lowering.nodes[0]

    def _kept(self, node: Any, at: int, call: fx.Node, origin: Origin) -> Any:
        """Return a node with the names that its values have today; the very one if it may stay."""
        pairs = zip(origin.slots, arguments(call), strict=True)
        read = {slot[1]: self.names[arg] for slot, arg in pairs if slot[0] == at}
        inputs = [read.get(i, name) for i, name in enumerate(node.input)]
        inner = {old: new for old, new in read.items() if isinstance(old, str) and old != new}
        outputs = list(node.output)
        if node is origin.nodes[-1]:
            outputs = self._outputs(node, call, origin)
        if inputs == list(node.input) and outputs == list(node.output) and not inner:
            return node
        fresh = type(node)()
        fresh.CopyFrom(node)
        fresh.input[:], fresh.output[:] = inputs, outputs
        for graph in subgraphs(fresh):
            rename(graph, inner)
        return fresh

    def _outputs(self, node: Any, call: fx.Node, origin: Origin) -> list[str]:
        if origin.output is not None:
            return [self.names[call] if n == origin.output else n for n in node.output]
        parts = {
            old.output: self.names[user]
            for user in call.users
            if (old := origin_of(user)) and not old.nodes and old.output
        }
        return [parts.get(name) or name for name in node.output]

    def _new(self, call: fx.Node, origin: Origin | None) -> None:
        sources, output = [self.names.get(arg, "") for arg in arguments(call)], self.names[call]
        name = origin.nodes[0].name if origin is not None else ""
        name = name or self.lowering.fresh(str(call.target if call.op == "call_module" else output))
        self.called[str(call.target if call.op == "call_module" else call.name)] = name
        self._tell(call)
        if call.op == "call_function":
            if origin is not None and call.target is torch.reshape:
                sizes = cast("tuple[int, ...]", call.args[1])
                self.lowering.reshape(sizes, sources[0], output, name)
            elif not self._twin(call, sources, output, name):
                self._no_lead(call)
                self.lowering.function(call, sources, output, name)
            return
        module = submodule(self.capture.module, str(call.target))
        if origin is not None and origin.lead is not None and call.args[0] is origin.lead:
            if not isinstance(module, nn.modules.conv._ConvNd):
                raise UnwritableError("its padding depends on the size of the input", {call})
            pad = str(attributes(origin.nodes[0])["auto_pad"])
            self.lowering.same_conv(call, module, sources[0], output, name, origin.module, pad)
            return
        self._no_lead(call)
        self.lowering.layer(call, module, sources[0], output, name)

    def _no_lead(self, call: fx.Node) -> None:
        if self.leads.intersection(call.all_input_nodes):
            raise UnwritableError("its padding depends on the size of the input", {call})

    def _tell(self, call: fx.Node) -> None:
        """Note what the writing of a layer rests on: axes and precision of its value."""
        shape = self.capture.shapes.get(call)
        source = next(iter(call.all_input_nodes), None)
        shape = self.capture.shapes.get(source) if shape is None and source else shape
        if shape is not None:
            call.meta["axes"], call.meta["spatial"] = len(shape), len(shape) - 2
        name = self.names.get(source) if source is not None else None
        code = self.network.sizes.types.get(name or "")
        if code is not None and (dtype := dtype_of(code)) is not None:
            call.meta["dtype"] = dtype

    def _twin(self, call: fx.Node, sources: list[str], output: str, name: str) -> bool:
        """Write a function as a node of the file that calls the same one."""
        key = _key(call)
        for other in self.network.file.nodes:
            twin = self.network.values.get(other.output[0]) if other.output else None
            origin = None if twin is None or twin is call else origin_of(twin)
            if origin is None or len(origin.slots) != 1 or twin is None or _key(twin) != key:
                continue
            if twin.target in _BENT and key is not None:
                node = type(other)()
                node.CopyFrom(other)
                node.name = name
                node.input[0], node.output[0] = sources[0], output
                self.lowering.nodes.append(node)
                return True
        return False

    # what is left of the rest

    def _fixed(self) -> list[Any]:
        """Return the nodes that no call of the graph stands for: they make constants."""
        calls = {id(node) for node in self.network.translated}
        return [node for node in self.network.file.nodes if id(node) not in calls]

    def _computed(self, nodes: list[Any]) -> tuple[list[Any], int]:
        """Store the values of nodes that no input decides; return the others, and how many."""
        fixed = {id(node) for node in self._fixed() if node.op_type != "Constant"}
        kept, stored = list[Any](), dict[str, str]()
        for node in nodes:
            if id(node) in fixed and self._is_copy(node):  # of weights, which may be large
                name = stored.get(str(node.input[0]), str(node.input[0]))
                if self.network.constants.is_stored(name):
                    stored[node.output[0]] = name
                    continue
            values = [
                (name, value) for name in node.output
                if name and (value := self.network.constants.value(name)) is not None
            ] if id(node) in fixed else []  # fmt: skip
            small = sum(value.nbytes for _, value in values) <= _MOST_STORED
            if not values or not small or not self.network.outputs_miss(node):
                kept.append(node)
                continue
            self.lowering.tensors.extend(to_proto(value, name) for name, value in values)
        return [_renamed(node, stored) for node in kept], len(nodes) - len(kept)

    def _is_copy(self, node: Any) -> bool:
        """Say whether a node gives a value another name, which nobody outside needs."""
        return node.op_type == "Identity" and self.network.outputs_miss(node)

    def _stored(self, nodes: list[Any]) -> list[Any]:
        """Store what Constant nodes hold, which opens faster; return the other nodes."""
        kept = list[Any]()
        for node in nodes:
            held = [
                item.t for item in node.attribute if item.name == "value" and item.HasField("t")
            ]
            if node.op_type != "Constant" or not held or not self.network.outputs_miss(node):
                kept.append(node)
                continue
            tensor = type(held[0])()
            tensor.CopyFrom(held[0])
            tensor.name = node.output[0]
            self.lowering.tensors.append(tensor)
        return kept

    def _without_unused(self, nodes: list[Any]) -> list[Any]:
        """Return the nodes without those that nobody reads any more."""
        while True:
            read = set(self.network.outputs).union(*(reads(node) for node in nodes))
            left = [
                node for node in nodes
                if not _was_read(self.network, node) or any(name in read for name in node.output)
            ]  # fmt: skip
            if len(left) == len(nodes):
                return left
            nodes = left


def _was_read(network: Network, node: Any) -> bool:
    return any(name in network.readers for name in node.output)


def is_sequence(call: object) -> bool:
    """Say whether a call makes a sequence of parts."""
    if not isinstance(call, fx.Node) or call.target is not torch.split:
        return False
    origin = origin_of(call)
    return origin is not None and [n.op_type for n in origin.nodes] == ["SplitToSequence"]


def _key(call: fx.Node) -> object:
    """Return what is equal for calls of one function."""
    if call.op != "call_function":
        return None
    return call.target, repr(call.args[1:]), repr(sorted(call.kwargs.items()))


def origin_of(call: fx.Node) -> Origin | None:
    """Return what a call was in the file, None for one that a fold added."""
    return call.meta.get("origin")


def arguments(call: fx.Node) -> list[fx.Node]:
    """Return the values that a call reads, constants left out."""
    origin = origin_of(call)
    source = origin.lead if origin is not None and origin.lead in call.all_input_nodes else None
    read = call if source is None else source
    return [arg for arg in nodes_in((read.args, read.kwargs)) if arg.op != "get_attr"]


def name_at(origin: Origin, slot: tuple[int, int | str]) -> str:
    """Return the name under which an origin read an argument."""
    at, which = slot
    return which if isinstance(which, str) else str(origin.nodes[at].input[which])


def is_fixed(call: fx.Node) -> bool:
    """Say whether no fold can change what a call reads."""
    origin = origin_of(call)
    if origin is None or not origin.nodes or "rescaled" in call.meta:
        return False
    if isinstance(origin.module, (HardGate, *MAX_POOLS.values())):
        return True
    return isinstance(call.target, Opaque) or call.target in _BENT


def ordered(nodes: list[Any]) -> list[Any]:
    """Return nodes so that each stands behind those it reads, and else in the order given."""
    makers = {name: node for node in nodes for name in node.output if name}
    done, found = set[int](), list[Any]()
    for first in nodes:
        stack = [first]
        while stack:
            node = stack[-1]
            before = (makers[name] for name in reads(node) if name in makers)
            waiting = [other for other in before if id(other) not in done and other is not node]
            if waiting and id(node) not in done:
                stack.extend(waiting)
                continue
            stack.pop()
            if id(node) not in done:
                done.add(id(node))
                found.append(node)
    return found


def reads(node: Any) -> set[str]:
    """Return the values that a node reads, in its subgraphs, too."""
    return set(node.input) | inner_reads(node)


def _renamed(node: Any, names: dict[str, str]) -> Any:
    """Return a node that reads values by their new names; the very one if it reads none of them."""
    if names.keys().isdisjoint(reads(node)):
        return node
    fresh = type(node)()
    fresh.CopyFrom(node)
    fresh.input[:] = [names.get(name, name) for name in node.input]
    for graph in subgraphs(fresh):
        rename(graph, names)
    return fresh


def rename(graph: Any, names: dict[str, str]) -> None:
    """Give outer values new names inside a subgraph, where it has none of its own like them."""
    free = captured(graph)
    inside = {old: new for old, new in names.items() if old in free}
    if not inside:
        return
    for node in graph.node:
        node.input[:] = [inside.get(name, name) for name in node.input]
        for below in subgraphs(node):
            rename(below, inside)
    for value in graph.output:
        value.name = inside.get(value.name, value.name)
