"""Norms that a folded network still has, and whether a convolution or linear layer could take them.

The check reads the folded network's graph anew and knows no rule of the engine, only what stands
next to a norm, so that a rule that is missing there shows up here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from refold.graph.capture import Capture, capture
from refold.graph.layers import ScaleShift
from zoo.live import is_norm

Layer = (nn.Linear, nn.modules.conv._ConvNd)
_CALLS = (F.batch_norm, torch.batch_norm)
_PASSING = (nn.Identity, nn.modules.dropout._DropoutNd, nn.Flatten, nn.AdaptiveAvgPool2d)


def count_norms(model: nn.Module) -> int:
    """Count norms with fixed statistics, and scales that stand for them."""
    return sum(is_norm(module) or isinstance(module, ScaleShift) for module in model.modules())


def foldable(model: nn.Module) -> list[str]:
    """Return the norms that a neighbour could take in: none when the fold is complete."""
    return [f"{path}: {why}" for path, why in _leftovers(model).items() if why]


def reasons(model: nn.Module) -> dict[str, str]:
    """Return for every norm that is left where its value comes from and where it goes."""
    found: dict[str, str] = {}
    for part in capture(model):
        for node, path in _norms(part):
            found[path] = f"from {_said(part, _source(part, node))} to " + ", ".join(
                dict.fromkeys(_said(part, user) for user in _readers(part, node))
            )
    return found


def _leftovers(model: nn.Module) -> dict[str, str]:
    seen: dict[str, str] = {}
    for part in capture(model):
        for node, path in _norms(part):
            seen[path] = _could_fold(part, node)
    for path, module in model.named_modules():
        if (is_norm(module) or isinstance(module, ScaleShift)) and path not in seen:
            seen[path] = "no graph reaches it"
    return seen


def _norms(part: Capture) -> Iterator[tuple[fx.Node, str]]:
    """Yield the norms of a graph, as layers or as calls, with the path of their module."""
    for node in part.graph.nodes:
        module = _module(part, node)
        if module is not None and (is_norm(module) or isinstance(module, ScaleShift)):
            yield node, part.full(str(node.target))
        elif node.op == "call_function" and node.target in _CALLS:
            stored = [n.target for n in node.all_input_nodes if n.op == "get_attr"]
            path = next((str(t) for t in stored if str(t).endswith("running_mean")), "")
            yield node, part.full(path.rpartition(".")[0])


def _could_fold(part: Capture, node: fx.Node) -> str:
    source = _source(part, node)
    before = _module(part, source)
    if _is_plain(before) and len(set(_readers(part, source))) == 1:
        return f"{source.target} could take it"
    readers = [_module(part, reader) for reader in _readers(part, node)]
    if readers and all(isinstance(reader, Layer) and not _pads(reader) for reader in readers):
        return "every layer after it could take it"
    return ""


def _is_plain(layer: nn.Module | None) -> bool:
    """Say whether a layer does what torch.nn does: one that pads by its input's size does not."""
    if not isinstance(layer, Layer):
        return False
    kinds = (kind for kind in type(layer).__mro__ if kind.__module__.startswith("torch.nn."))
    return type(layer).forward is next(kinds).forward


def _pads(layer: Any) -> bool:
    padding = getattr(layer, "padding", 0)
    if padding == "same":
        return any(size > 1 for size in layer.kernel_size)
    return any(padding) if isinstance(padding, tuple) else padding not in (0, "valid")


def _module(part: Capture, node: fx.Node) -> nn.Module | None:
    return part.module.get_submodule(str(node.target)) if node.op == "call_module" else None


def _source(part: Capture, node: fx.Node) -> fx.Node:
    """Return the node a norm reads, seen through layers that only hand values on."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    while isinstance(_module(part, source), _PASSING) and isinstance(source.args[0], fx.Node):
        source = source.args[0]
    return source


def _readers(part: Capture, node: fx.Node) -> Iterator[fx.Node]:
    for user in node.users:
        if isinstance(_module(part, user), _PASSING):
            yield from _readers(part, user)
        else:
            yield user


def _said(part: Capture, node: fx.Node) -> str:
    module = _module(part, node)
    if module is not None:
        padded = isinstance(module, nn.modules.conv._ConvNd) and _pads(module)
        return ("padded " if padded else "") + type(module).__name__
    if node.op in ("placeholder", "output"):
        return "the " + ("input" if node.op == "placeholder" else "output")
    return str(getattr(node.target, "__name__", node.target))
