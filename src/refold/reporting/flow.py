"""A network as boxes and arrows: what a reader of its graph wants to see, and nothing else.

Calls that only ask for a size, hand a stored tensor on or do nothing (`Identity`, dropout) are no
boxes: whatever reads them reads what they read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AvgPoolNd, _MaxPoolNd

from refold.graph import Capture, is_question, name_of, place_of, submodule

Shape = tuple[int, ...]


@dataclass(eq=False)
class Box:
    """One step of a network.

    Args:
        place: its module path; a call inside a module reads `block.add`.
        kind: one of `conv`, `linear`, `norm`, `act`, `pool`, `sum`, `concat`, `input`, `output`,
            `part` (a module whose code was not followed) and `other`.
        title: what it is, such as `Conv 3×3`.
        detail: its channels, stride and groups.
        reads: the boxes whose values it reads.
        parameters: the parameters that no box before it holds.
        weight: its largest parameter of two axes or more.
        transposed: whether that weight has its outputs on the second axis.
        node: where it stands in its capture.
        shape: of its value, where it is known.
    """

    place: str
    kind: str
    title: str
    detail: str
    reads: tuple[int, ...]
    parameters: int
    weight: Tensor | None
    transposed: bool
    node: fx.Node
    shape: Shape | None


@dataclass(eq=False)
class Flow:
    """A whole network.

    Args:
        boxes: in the order in which they run.
        captures: the recordings that they come from.
        of: the number of the box of each node that has one.
    """

    boxes: list[Box] = field(default_factory=list[Box])
    captures: list[Capture] = field(default_factory=list[Capture])
    of: dict[fx.Node, int] = field(default_factory=dict[fx.Node, int])

    @property
    def root(self) -> Capture | None:
        """The recording of the whole network, where its code could be followed."""
        return next((found for found in self.captures if not found.path), None)


def draw(captures: Iterable[Capture]) -> Flow:
    """Return the boxes of a network, those of its outermost recording first.

    Args:
        captures: all that was recorded of it.
    """
    flow = Flow(captures=list(captures)[::-1])
    inner = [found.path for found in flow.captures if found.path]
    counted: set[int] = set()
    for capture in flow.captures:
        _Drawing(flow, capture, inner, counted).run()
    return flow


class _Drawing:
    """Draws one capture."""

    def __init__(self, flow: Flow, capture: Capture, inner: list[str], counted: set[int]) -> None:
        self.flow, self.capture, self.inner, self.counted = flow, capture, inner, counted
        self.seen_through: dict[fx.Node, tuple[int, ...]] = {}
        self.held: dict[fx.Node, list[Tensor]] = {}  # by nodes that are not boxes

    def run(self) -> None:
        for node in self.capture.graph.nodes:
            if self._is_hidden(node):
                self.held[node] = self._tensors(node)
            elif self._does_nothing(node):
                self.seen_through[node] = self._reads(node)
            else:
                self.flow.of[node] = len(self.flow.boxes)
                self.flow.boxes.append(self._box(node))

    def _is_hidden(self, node: fx.Node) -> bool:
        if node.op == "get_attr" or is_question(node):
            return True
        inputs = node.all_input_nodes
        return node.op in ("call_function", "call_method") and all(n in self.held for n in inputs)

    def _module(self, node: fx.Node) -> nn.Module | None:
        is_module = node.op == "call_module"
        return submodule(self.capture.module, str(node.target)) if is_module else None

    def _does_nothing(self, node: fx.Node) -> bool:
        module = self._module(node)
        if module is None:
            return name_of(node) in ("dropout", "contiguous") and len(node.all_input_nodes) == 1
        return isinstance(module, (nn.Identity, _DropoutNd))

    def _reads(self, node: fx.Node) -> tuple[int, ...]:
        found: dict[int, None] = {}
        for source in node.all_input_nodes:
            if source in self.flow.of:
                found[self.flow.of[source]] = None
            found.update(dict.fromkeys(self.seen_through.get(source, ())))
        return tuple(found)

    def _tensors(self, node: fx.Node) -> list[Tensor]:
        """Return the parameters that a node holds, reads or computes from."""
        found = [tensor for source in node.all_input_nodes for tensor in self.held.get(source, [])]
        if node.op == "get_attr":
            value: object = self.capture.module
            for name in str(node.target).split("."):
                value = getattr(value, name, None)
            if isinstance(value, nn.Parameter):
                found.append(value)
        module = self._module(node)
        if module is not None:
            below = self.capture.full(str(node.target))
            if below not in self.inner:
                found.extend(module.parameters())
        return found

    def _box(self, node: fx.Node) -> Box:
        module, tensors = self._module(node), self._tensors(node)
        fresh = {id(t): t for t in tensors if id(t) not in self.counted}
        self.counted.update(fresh)
        kind, title, detail = _describe_module(module) if module else _describe_call(node)
        if node.op == "placeholder" and self.capture.path:
            title = f"into {self.capture.path}"
        weights = [t for t in tensors if t.ndim > 1]
        return Box(
            place=self.capture.full(place_of(node)),
            kind=kind,
            title=title,
            detail=detail,
            reads=self._reads(node),
            parameters=sum(t.numel() for t in fresh.values()),
            weight=max(weights, key=Tensor.numel) if weights and kind != "part" else None,
            transposed=bool(getattr(module, "transposed", False)),
            node=node,
            shape=self.capture.shapes.get(node),
        )


def _describe_module(module: nn.Module) -> tuple[str, str, str]:
    """Return the kind, the title and the details of a layer."""
    name = type(module).__name__
    if isinstance(module, _ConvNd):
        return "conv", _conv_title(module), _conv_detail(module)
    if isinstance(module, nn.Linear):
        return "linear", "Linear", f"{module.in_features} → {module.out_features}"
    if isinstance(module, _NormBase):
        return "norm", name.rstrip("123d"), str(module.num_features)
    if "norm" in name.lower():
        return "norm", name, ""
    if isinstance(module, _POOLS):
        return "pool", name, ""
    if type(module).__module__ == "torch.nn.modules.activation":
        return "act", name, ""
    is_layer = type(module).__module__.startswith("torch.nn.") and not any(module.children())
    return ("other" if is_layer else "part"), name, ""


_POOLS = (_AvgPoolNd, _MaxPoolNd, _AdaptiveAvgPoolNd)


def _conv_title(conv: _ConvNd) -> str:
    prefix = "Depthwise " if conv.groups == conv.in_channels > 1 else ""
    name = "ConvTranspose" if conv.transposed else "Conv"
    return f"{prefix}{name} {'×'.join(map(str, conv.kernel_size))}"


def _conv_detail(conv: _ConvNd) -> str:
    words = [f"{conv.in_channels} → {conv.out_channels}"]
    if set(conv.stride) != {1}:
        words.append(f"stride {_sizes(conv.stride)}")
    if set(conv.dilation) != {1}:
        words.append(f"dilation {_sizes(conv.dilation)}")
    if conv.groups not in (1, conv.in_channels):
        words.append(f"{conv.groups} groups")
    return " · ".join(words)


def _sizes(sizes: tuple[int, ...]) -> str:
    return str(sizes[0]) if len(set(sizes)) == 1 else "×".join(map(str, sizes))


def _describe_call(node: fx.Node) -> tuple[str, str, str]:
    if node.op == "placeholder":
        return "input", str(node.target), ""
    if node.op == "output":
        return "output", "output", ""
    name = name_of(node)
    bare = name.strip("_").removeprefix("functional_")
    kind = next((kind for kind, names in _CALLS.items() if bare in names), None)
    if kind is None:
        kind = next((kind for kind, part in _PARTS if part in bare), "other")
    return kind, _TITLES.get(bare, bare), ""


_CALLS = {
    "sum": {"add", "iadd", "sub", "isub"},
    "concat": {"cat", "concat", "stack"},
    "act": {
        *("relu", "relu6", "gelu", "silu", "sigmoid", "tanh", "softmax", "hardtanh", "hardswish"),
        *("hardsigmoid", "leaky_relu", "elu", "mish", "clamp", "softplus", "log_softmax"),
    },
    "linear": {"linear", "matmul", "bmm", "addmm", "scaled_dot_product_attention"},
}
_PARTS = (("conv", "conv"), ("norm", "norm"), ("pool", "pool"))
_TITLES = {
    "batch_norm": "BatchNorm",
    "getitem": "slice",
    "add": "+",
    "iadd": "+",
    "sub": "−",
    "isub": "−",
    "mul": "×",
    "imul": "×",
}


def shape_text(shape: Shape | None) -> str:
    """Return a shape as people write it.

    >>> shape_text((1, 64, 56, 56)), shape_text(None)
    ('1×64×56×56', '')
    """
    return "" if shape is None else "×".join(map(str, shape))


def bytes_of(module: nn.Module) -> int:
    """Return how many bytes the parameters and buffers of a network take."""
    held = {id(t): t for t in (*module.parameters(), *module.buffers())}.values()
    return sum(math.prod(tensor.shape) * tensor.element_size() for tensor in held)
