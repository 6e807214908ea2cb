"""What one node does to memory: what it changes, and whose memory its result may share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import fx, nn

from refold.graph import layers
from refold.graph.calls import Kind, is_question, kind_by_name, name_of, writes_by_name
from refold.graph.copies.modules import submodule
from refold.graph.trace.frames import frame_of, nodes_in, root_of
from refold.graph.trace.leaves import is_layer
from refold.graph.trace.overridden import layer_class

_FRESH_LAYERS = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.Bilinear,
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.Embedding,
)
_PASSING_LAYERS = (
    nn.Identity,
    nn.modules.dropout._DropoutNd,
    nn.Flatten,
    nn.Unflatten,
    nn.ChannelShuffle,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.Upsample,
    nn.Fold,
    nn.Unfold,
    nn.modules.padding._ConstantPadNd,
    nn.modules.container.ParameterList,
)
_HONEST_HOMES = (
    *("torch", "_operator", "operator", "builtins", "math", "torchvision", "timm"),
    "refold.",  # what stands for a node of a file
)


def mutated(node: fx.Node) -> list[fx.Node]:
    """Return the argument nodes whose value `node` surely or explicitly changes in place.

    Examples:
        >>> graph = fx.symbolic_trace(lambda x: x.clone().add_(1)).graph
        >>> [[arg.name for arg in mutated(node)] for node in graph.nodes]
        [[], [], ['clone'], []]
    """
    changed = nodes_in(node.kwargs["out"]) if "out" in node.kwargs else []
    if _writes_first(node):
        return changed + _first(node)
    if isinstance(node.target, torch._ops.OpOverload):
        return changed + _aliased_arguments(node, node.target, written=True)
    return changed


def maybe_mutated(node: fx.Node) -> list[fx.Node]:
    """Return the arguments that code which the trace could not see may change in place."""
    if node.op == "call_module":
        effects = cast("tuple[bool, bool] | None", node.meta.get("effects"))
        unknown = _is_unknown(module_of(node)) if effects is None else effects[0]
        return nodes_in((node.args, node.kwargs)) if unknown else []
    if node.op == "call_function" and not _is_honest(node.target):
        return nodes_in((node.args, node.kwargs))
    return []


def may_alias(node: fx.Node) -> list[fx.Node]:
    """Return the nodes whose memory the result of `node` may share.

    Examples:
        >>> graph = fx.symbolic_trace(lambda x: x.relu().flatten(1)).graph
        >>> [[arg.name for arg in may_alias(node)] for node in graph.nodes][:3]
        [[], [], ['relu']]
    """
    shared = mutated(node)
    if node.op == "call_module":
        return shared + (nodes_in((node.args, node.kwargs)) if _may_pass_through(node) else [])
    if node.op == "call_method":
        return shared + (_first(node) if _is_view(str(node.target)) else [])
    if node.op != "call_function":
        return shared
    if isinstance(node.target, torch._ops.OpOverload):
        return shared + _aliased_arguments(node, node.target, written=False)
    if node.target is getattr:
        return shared + (_first(node) if _is_view(str(node.args[1])) else [])
    builds = isinstance(node.target, type)  # a tuple, dict or dataclass around values
    if builds or _is_view(name_of(node)) or not _is_honest(node.target):
        return shared + nodes_in((node.args, node.kwargs))
    return shared


def is_view_of(node: fx.Node, value: fx.Node) -> bool:
    """Say whether a node only gives the memory of `value` another name or shape."""
    if value not in may_alias(node) or "effects" in node.meta:
        return False
    return value not in mutated(node) and value not in maybe_mutated(node)


def reads_values(node: fx.Node) -> bool:
    """Say whether a node reads the numbers of its arguments, not only their shape or dtype."""
    if node.target is getattr:
        return _is_view(str(node.args[1]))
    return not is_question(node)


def module_of(node: fx.Node) -> nn.Module | None:
    """Return the module that a `call_module` node calls, or None when it is not known."""
    root = node.graph.owning_module
    if root is None and "frame" in node.meta:
        root = root_of(frame_of(node)).module
    try:
        return None if root is None else submodule(root, cast(str, node.target))
    except AttributeError:
        return None


def _is_view(name: str) -> bool:
    return Kind.VIEW in kind_by_name(name)


def _writes_first(node: fx.Node) -> bool:
    """Say whether a node changes its first argument: `relu_`, `+=`, `inplace=True`, `x[0] = y`."""
    if node.op == "call_module":
        return _layer_is_inplace(node)
    if node.op == "call_method":
        return writes_by_name(node.target)
    if node.op != "call_function" or isinstance(node.target, torch._ops.OpOverload):
        return False
    return writes_by_name(node.target) or _asks_inplace(node)


def _asks_inplace(node: fx.Node) -> bool:
    """Find `inplace=True` by name or position (`F.relu(x, True)`); eval dropout does nothing."""
    target = cast(Callable[..., Any], node.target)
    names = _argument_names(target)
    if "inplace" not in names and "inplace" not in node.kwargs:
        return False
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    if "dropout" in getattr(target, "__name__", "") and given.get("training", True) is False:
        return False
    return given.get("inplace", False) not in (False, None)


def _argument_names(function: Callable[..., Any]) -> tuple[str, ...]:
    code = getattr(getattr(function, "__wrapped__", function), "__code__", None)
    return () if code is None else code.co_varnames[: code.co_argcount]


def _layer_is_inplace(node: fx.Node) -> bool:
    module = module_of(node)
    if module is None or not _asks(module, "inplace"):  # first, as it is quick and few do
        return False
    is_dropout = issubclass(layer_class(module), nn.modules.dropout._DropoutNd)
    return is_layer(module) and (module.training or not is_dropout)


def _asks(module: nn.Module, flag: str) -> bool:
    known = flag in module.__dict__ or hasattr(type(module), flag)
    return known and bool(getattr(module, flag))


def _aliased_arguments(node: fx.Node, op: torch._ops.OpOverload, *, written: bool) -> list[fx.Node]:
    found: list[fx.Node] = []
    for index, argument in enumerate(op._schema.arguments):
        info = argument.alias_info
        if info is not None and (info.is_write or not written):
            given = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
            found += nodes_in(given)
    return found


def _first(node: fx.Node) -> list[fx.Node]:
    named = node.kwargs.get("input", node.kwargs.get("tensor"))  # torch.nn.init says tensor
    return nodes_in(node.args[0] if node.args else named)


def _is_unknown(module: nn.Module | None) -> bool:
    """Unseen code may do anything; a subclass of a layer that makes a new value is trusted."""
    return module is None or not (
        is_layer(module)
        or type(module).__module__ == layers.__name__
        or issubclass(layer_class(module), _FRESH_LAYERS)
    )


def _may_pass_through(node: fx.Node) -> bool:
    effects = cast("tuple[bool, bool] | None", node.meta.get("effects"))
    if effects is not None:
        return effects[1]
    module = module_of(node)
    scales = isinstance(module, layers.ScaleShift) and bool(module._parameters)
    own = type(module).__module__ == layers.__name__ and not scales
    return module is None or _is_unknown(module) or own or isinstance(module, _PASSING_LAYERS)


def _is_honest(target: Any) -> bool:
    """Functions of torch and its libraries change nothing unless their name or schema says so."""
    if isinstance(target, torch._ops.OpOverload | type):
        return True
    home = cast("str | None", getattr(target, "__module__", None))
    return home is None or home.startswith(_HONEST_HOMES)
