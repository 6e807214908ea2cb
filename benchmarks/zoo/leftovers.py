"""Norms that a folded network still has, and whether a convolution or linear layer could take them.

The check reads the folded network's graph anew and knows no rule of the engine, only what stands
next to a norm, so that a rule that is missing there shows up here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from refold.graph.layers import ScaleShift
from refold.graph.trace.capture import Capture, capture
from refold.graph.trace.frames import walk
from zoo.live import is_norm

Layer = (nn.Linear, nn.modules.conv._ConvNd)
_CALLS = (F.batch_norm, torch.batch_norm)
_PASSING = (nn.Identity, nn.modules.dropout._DropoutNd, nn.Flatten, nn.AdaptiveAvgPool2d)


def count_norms(model: nn.Module) -> int:
    """Count norms with fixed statistics."""
    return sum(is_norm(module) for module in model.modules())


def count_scales(model: nn.Module) -> int:
    """Count the scales and shifts that a fold has put in the place of other layers."""
    return sum(isinstance(module, ScaleShift) for module in model.modules())


def count_layers(model: nn.Module, without: tuple[str, ...] = ()) -> int:
    """Count convolutions and linear layers, those below some paths left out."""
    return sum(
        isinstance(module, Layer) and not any(f"{path}.".startswith(f"{p}.") for p in without)
        for path, module in model.named_modules()
    )


def foldable(model: nn.Module) -> list[str]:
    """Return the norms that a neighbour could take in: none when the fold is complete."""
    found = _all_norms(model)
    faults = [f"{norm.path}: {why}" for norm in found if (why := norm.taker())]
    reached = {norm.path for norm in found}
    left = [path for path, module in model.named_modules() if _normalises(module)]
    return faults + [f"{path}: no graph reaches it" for path in left if path not in reached]


def reasons(model: nn.Module) -> dict[str, str]:
    """Return for every norm that is left where its value comes from and where it goes."""
    return {norm.path: str(norm) for norm in _all_norms(model)}


def _normalises(module: nn.Module) -> bool:
    return is_norm(module) or isinstance(module, ScaleShift)


@dataclass(frozen=True)
class _Norm:
    """A norm in a graph: the value it reads and the value it gives."""

    part: Capture
    path: str
    source: fx.Node
    value: fx.Node

    def taker(self) -> str:
        """Return which neighbour could take the norm in, empty when none could."""
        source = _before(self.part, self.source)
        if _is_plain(_module(self.part, source)) and len(set(_readers(self.part, source))) == 1:
            return f"{source.target} could take it"
        readers = [_module(self.part, reader) for reader in _readers(self.part, self.value)]
        if readers and all(_is_plain(reader) and not _pads(reader) for reader in readers):
            return "every layer after it could take it"
        return ""

    def __str__(self) -> str:
        readers = dict.fromkeys(_said(self.part, user) for user in _readers(self.part, self.value))
        source = _said(self.part, _before(self.part, self.source))
        return f"from {source} to {', '.join(readers)}"


def _all_norms(model: nn.Module) -> list[_Norm]:
    return [norm for part in capture(model) for norm in _norms(part)]


def _norms(part: Capture) -> Iterator[_Norm]:
    """Yield the norms of a graph: layers, calls, and layers that were traced through."""
    for node in part.graph.nodes:
        module = _module(part, node)
        if module is not None and _normalises(module):
            yield _Norm(part, part.full(str(node.target)), node.args[0], node)
        elif node.op == "call_function" and node.target in _CALLS:
            stored = [str(n.target) for n in node.all_input_nodes if n.op == "get_attr"]
            path = next((t for t in stored if t.endswith("running_mean")), "")
            yield _Norm(part, part.full(path.rpartition(".")[0]), node.args[0], node)
    for frame in walk(part.root):
        if isinstance(frame.module, ScaleShift):
            yield _Norm(part, part.full(frame.path), frame.args[0], frame.output)


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


def _before(part: Capture, source: fx.Node) -> fx.Node:
    """Return the value that a norm reads, seen through layers that only hand values on."""
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
