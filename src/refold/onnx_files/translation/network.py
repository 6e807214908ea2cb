"""A file's main graph as the torch.fx graph that the fold passes edit.

What the algebra knows becomes torch's layer or function; everything else is one opaque call, whose
arguments are the values that its node reads. Each call notes which node it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from refold.errors import InputError
from refold.graph import Capture, Frame, nodes_in
from refold.onnx_files.constants import Constants
from refold.onnx_files.reading import OnnxFile, captured, subgraphs, title
from refold.onnx_files.sizes import Shape, Sizes
from refold.onnx_files.tensors import is_floating

Slot = tuple[int, int | str]
"""Which of an origin's nodes reads an argument, at which input or under which captured name."""


class Opaque:
    """Stands in a graph for a node that refold does not interpret.

    Args:
        name: what messages call it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.__name__ = "opaque"

    def __call__(self, *args: Any) -> Any:
        """Fail: nothing runs the graph itself."""
        raise NotImplementedError(self.name)


class UnreadError(Exception):
    """A layer that is not read as one: the message says why."""


@dataclass(eq=False)
class Origin:
    """What a call of the graph was in the file.

    Args:
        nodes: the nodes that it stands for, in order.
        slots: who reads each of its arguments.
        output: the name of its value; None for several, which are read one by one.
        module: the layer it calls, to tell whether it still does.
        lead: a call in front of it that belongs to the same node: a padding that sizes decide.
        anew: whether the call says more than its node, and is written as it stands.
    """

    nodes: tuple[Any, ...]
    slots: tuple[Slot, ...]
    output: str | None
    module: nn.Module | None = None
    lead: fx.Node | None = None
    anew: bool = False


@dataclass(eq=False)
class Network:
    """A graph under construction.

    Args:
        file: what was read.
        sizes: the types and shapes of its values.
        constants: its constants.
    """

    file: OnnxFile
    sizes: Sizes
    constants: Constants
    root: nn.Module = field(default_factory=nn.Module)
    graph: fx.Graph = field(default_factory=fx.Graph)
    values: dict[str, fx.Node] = field(default_factory=dict[str, fx.Node])
    shapes: dict[fx.Node, Shape] = field(default_factory=dict[fx.Node, Shape])
    calls: dict[str, int] = field(default_factory=dict[str, int])
    stays: dict[fx.Node, str] = field(default_factory=dict[fx.Node, str])
    readers: dict[str, list[Any]] = field(default_factory=dict[str, list[Any]])
    merged: dict[int, list[Any]] = field(default_factory=dict[int, list[Any]])
    translated: list[Any] = field(default_factory=list[Any])
    unread: dict[fx.Node, str] = field(default_factory=dict[fx.Node, str])

    def __post_init__(self) -> None:
        self.frame = Frame("", self.root)
        for node in self.file.nodes:
            for name in dict.fromkeys((*node.input, *inner_reads(node))):
                self.readers.setdefault(name, []).append(node)
        self.outputs = [value.name for value in self.file.model.graph.output]

    # what builders ask

    def value(self, name: str) -> fx.Node:
        """Return the call that makes a value.

        Raises:
            KeyError: when it is a constant or absent.
        """
        return self.values[name]

    def is_value(self, name: str) -> bool:
        """Say whether an input decides a value."""
        return name in self.values

    def constant(self, name: str) -> Tensor | None:
        """Return a constant of the caller's own, None for a value of the inputs."""
        value = None if not name or name in self.values else self.constants.value(name)
        return value if value is None or self.constants.is_stored(name) else value.clone()

    def shape(self, name: str) -> Shape | None:
        """Return the shape of a value for the first choice of the free sizes."""
        return self.sizes.shapes.get(name)

    def rank(self, name: str) -> int | None:
        """Return the number of a value's axes."""
        shape = self.shape(name)
        return None if shape is None else len(shape)

    def is_float(self, name: str) -> bool:
        """Say whether a value is known to be of a floating type."""
        return is_floating(self.sizes.types.get(name))

    def outputs_miss(self, node: Any) -> bool:
        """Say whether a node makes no output of the file."""
        return not set(node.output).intersection(self.outputs)

    def only_reader(self, name: str) -> Any:
        """Return the one node that reads a value, None where others do or it is an output."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    # what builders make

    def function(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
    ) -> fx.Node:
        """Add a call of a function."""
        return self._own(self.graph.call_function(target, args, kwargs or {}))

    def layer(self, module: nn.Module, source: fx.Node, node: Any) -> fx.Node:
        """Add a call of a layer, which keeps the place of its node as a name."""
        path = self._free(title(node))
        self.root.add_module(path, module.eval().requires_grad_(False))
        self.calls[path] = 1
        return self._own(self.graph.call_module(path, (source,)))

    def tensor(self, tensor: Tensor, node: Any) -> fx.Node:
        """Add a stored tensor."""
        path = self._free(f"{title(node)}_value")
        self.root.register_buffer(path, tensor)
        return self._own(self.graph.get_attr(path))

    def _free(self, name: str) -> str:
        base = name.replace(".", "·") or "node"
        count, free = 0, base
        while hasattr(self.root, free):
            count += 1
            free = f"{base}·{count}"
        return free

    def _own(self, node: fx.Node) -> fx.Node:
        node.meta["frame"] = self.frame
        self.frame.nodes.append(node)
        return node

    def name_of(self, call: fx.Node) -> str:
        """Return the name of a value in the file, nothing for several."""
        origin: Origin | None = call.meta.get("origin")
        return (origin.output if origin is not None else None) or ""

    def erase(self, call: fx.Node) -> None:
        """Take away a call that nobody reads."""
        self.frame.nodes.remove(call)
        self.graph.erase_node(call)
        self.shapes.pop(call, None)

    # the whole

    def place(self, value: fx.Node, nodes: Sequence[Any], output: str | None) -> None:
        """Note where a call comes from, and let others read its value by name."""
        self.translated.extend(nodes)
        module = self.root._modules.get(str(value.target)) if value.op == "call_module" else None
        lead = value.meta.pop("lead", None)
        value.meta["origin"] = Origin(
            tuple(nodes),
            self._slots(lead or value, nodes),
            output,
            module,
            lead,
            value.meta.pop("anew", False),
        )
        value.meta["place"] = title(nodes[0])
        if output is not None:
            self.name(value, output)

    def name(self, value: fx.Node, output: str) -> None:
        """Let others read a value by its name."""
        self.values[output] = value
        shape = self.shape(output)
        if shape is not None:
            self.shapes[value] = shape
        if shape != self.sizes.others.get(output) and _is_uneven(self.sizes, output):
            self.shapes.pop(value, None)

    def _slots(self, value: fx.Node, nodes: Sequence[Any]) -> tuple[Slot, ...]:
        free = [(at, i, name) for at, n in enumerate(nodes) for i, name in enumerate(n.input)]
        inner: list[tuple[int, str, str]] = [
            (at, name, name) for at, n in enumerate(nodes) for name in sorted(inner_reads(n))
        ]
        found: list[Slot] = []
        for arg in nodes_in((value.args, value.kwargs)):
            if arg.op == "get_attr":
                continue
            match = next((e for e in (*free, *inner) if self.values.get(e[2]) is arg), None)
            if match is None:
                raise KeyError(f"{value.name} reads what its node does not")
            if isinstance(match[1], int):
                free.remove((match[0], match[1], match[2]))
            else:
                inner.remove((match[0], match[1], match[2]))
            found.append((match[0], match[1]))
        return tuple(found)

    def capture(self) -> Capture:
        """Return the finished graph."""
        ends = tuple(self.values[name] for name in self.outputs if name in self.values)
        output = self._own(self.graph.output(ends))
        output.meta["origin"] = Origin((), (), None)
        self.root.eval()
        made = Capture("", self.root, self.graph, self.frame, self.root, self.calls)
        made.shapes, made.stays = self.shapes, self.stays
        self.frame.output = ends
        return made


def _is_uneven(sizes: Sizes, name: str) -> bool:
    one, other = sizes.shapes.get(name), sizes.others.get(name)
    return one is None or other is None or len(one) != len(other)


def inner_reads(node: Any) -> set[str]:
    """Return the outer values that the subgraphs of a node read."""
    return set[str]().union(*map(captured, subgraphs(node)))


def opaque(network: Network, node: Any) -> fx.Node:
    """Add a node that refold does not interpret; it reads every value that its node reads."""
    names = [*node.input, *sorted(inner_reads(node))]
    args = tuple(network.value(name) for name in names if network.is_value(name))
    return network.function(Opaque(title(node)), args)


def placeholders(network: Network) -> None:
    """Add the inputs of the file, those with a default that may be replaced included."""
    graph = network.file.model.graph
    stored = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        if value.name in stored and network.file.model.ir_version < 4:
            continue
        if not value.name:
            raise InputError("one of its inputs has no name: the file is damaged")
        made = network._own(network.graph.placeholder(f"input_{len(network.values)}"))
        made.meta["origin"] = Origin((), (), value.name)
        made.meta["place"] = value.name
        network.name(made, value.name)
