"""Which norm made a channel: its scale is read where it still stands, before norms are folded.

Folding, and removing residuals even more, leave no norm behind, and rename, widen and merge what
it scaled. Yet a channel is its numbers: the network as it was given and its plain form run on one
random input, and a channel of the plain form has the scale of the channel that holds its numbers.

A sum of independent terms has the root of the sum of their squared scales: a norm's scale is the
deviation of its output, which is also what RMNet logs for block outputs.

Source: norm scales as importance, arXiv:1708.06519; the scale of a sum, arXiv:2111.00687.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from refold.algebra.operator import Affine, AvgPool, Conv, Identity, Operator, Resample, chain
from refold.graph import (
    Capture,
    Lifter,
    Link,
    Piece,
    canonical,
    capture_all,
    duplicate,
    layer_class,
    link,
    submodule,
    surroundings_kept,
    unwrap,
)
from refold.inputs import Arguments, call
from refold.pruning.spans import max_pool

_PRINT = 8  # numbers that a channel is known by
_CLOSE = 1e-3  # largest distance of two prints of one channel, relative to their length,
_STEPS = 8  # or this many roundings of the coarsest weight
_AT_ONCE = 128  # channels that are looked up together: large networks have 100,000 prints


def norm_scales(
    model: nn.Module, plain: nn.Module, example_inputs: Arguments, paths: list[str]
) -> dict[str, Tensor]:
    """Return the norm scale of every channel of some layers; NaN where no norm made it.

    Args:
        model: the network with its norms, in eval mode.
        plain: the same function without them.
        example_inputs: that both accept; only shapes matter.
        paths: layers of `plain`.
    """
    inputs = _random(example_inputs)
    rounding = [torch.finfo(p.dtype).eps for p in plain.parameters() if p.is_floating_point()]
    book = _Book(max(_CLOSE, _STEPS * max(rounding, default=0.0)))
    with torch.no_grad(), surroundings_kept(unwrap(model)):
        for capture, arguments in _captures(unwrap(model), inputs):
            book.add(capture, _scales(capture), arguments)
        found: dict[str, Tensor] = {}
        for capture, arguments in _captures(plain, inputs):
            prints = _Prints(
                capture, {n for n in capture.graph.nodes if _path(capture, n) in paths}
            )
            prints.run(*arguments)
            for node, (key, rows) in prints.found.items():
                found[_path(capture, node)] = book.look_up(key, rows)
    return found


def _random(example_inputs: Arguments) -> Arguments:
    generator = torch.Generator().manual_seed(0)

    def drawn(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        return torch.randn(x.shape, generator=generator).to(x)

    return pytree.tree_map_only(Tensor, drawn, example_inputs)


def _captures(model: nn.Module, inputs: Arguments) -> Iterator[tuple[Capture, Arguments]]:
    """Yield every capture that the example reaches, with what it is called with."""
    model = duplicate(model)  # it runs
    found = capture_all(model, inputs).captures
    arguments = _called_with(model, [capture.path for capture in found], inputs)
    for capture in found:
        if capture.path in arguments:
            args, kwargs = arguments[capture.path]
            bound = inspect.signature(capture.module.forward).bind(*args, **kwargs).arguments
            named = {**kwargs, **bound}  # an argument that is not a tensor has no placeholder
            names = [str(n.target) for n in capture.graph.nodes if n.op == "placeholder"]
            yield capture, tuple(named[name] for name in names)


def _called_with(
    model: nn.Module, paths: list[str], inputs: Arguments
) -> dict[str, tuple[Arguments, dict[str, Any]]]:
    """Return what the modules at these paths are called with first when the model runs."""
    seen: dict[str, tuple[Arguments, dict[str, Any]]] = {}

    def watch(path: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Arguments, kwargs: dict[str, Any]) -> None:
            seen.setdefault(path, (args, kwargs))

        return note

    hooks = [
        submodule(model, path).register_forward_pre_hook(watch(path), with_kwargs=True)
        for path in paths
    ]
    try:
        call(model, pytree.tree_map_only(Tensor, torch.clone, inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _path(capture: Capture, node: fx.Node) -> str:
    return capture.full(str(node.target)) if node.op == "call_module" else ""


class _Prints(fx.Interpreter):
    """Runs a capture and notes a short print of every channel of some values."""

    def __init__(self, capture: Capture, wanted: set[fx.Node]) -> None:
        module = capture.graph_module()
        super().__init__(module, garbage_collect_values=True)
        self.originals = dict(zip(module.graph.nodes, capture.graph.nodes, strict=True))
        self.wanted = wanted
        self.found: dict[fx.Node, tuple[tuple[int, ...], Tensor]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and print its channels where they are wanted."""
        value: Any = super().run_node(n)
        original = self.originals[n]
        if original in self.wanted and isinstance(value, Tensor) and value.ndim > 1:
            rows = value.detach().transpose(0, 1).flatten(1)
            self.found[original] = (tuple(value.shape[2:]), rows.double().cpu() @ _marks(rows))
        return value


def _marks(rows: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(rows.shape[1])
    return torch.randn(rows.shape[1], _PRINT, generator=generator, dtype=torch.float64)


class _Book:
    """The prints of all channels whose scale is known, and how close two of one channel are."""

    def __init__(self, close: float) -> None:
        self.close = close
        self.entries: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}

    def add(self, capture: Capture, scales: dict[fx.Node, Tensor], arguments: Arguments) -> None:
        """Run a capture and enter its channels."""
        prints = _Prints(capture, set(scales))
        prints.run(*arguments)
        for node, (key, rows) in prints.found.items():
            self.entries.setdefault(key, []).append((rows, scales[node]))

    def look_up(self, key: tuple[int, ...], rows: Tensor) -> Tensor:
        """Return the scales of the channels that have these prints."""
        known = self.entries.get(key)
        if not known:
            return torch.full((len(rows),), torch.nan, dtype=torch.float64)
        prints, scales = (torch.cat(parts) for parts in zip(*known, strict=True))
        nearest = [torch.cdist(part, prints).min(dim=1) for part in rows.split(_AT_ONCE)]
        distance, at = (torch.cat(parts) for parts in zip(*nearest, strict=True))
        close = distance <= self.close * rows.norm(dim=1)
        return torch.where(close, scales[at], torch.nan)


# scales of a graph's values


def _scales(capture: Capture) -> dict[fx.Node, Tensor]:
    """Return the scale of the channels of every value for which norms tell it."""
    lifter = Lifter.of(capture)
    found: dict[fx.Node, Tensor] = {}
    for node in capture.graph.nodes:
        scale = _scale(lifter, node, found)
        if scale is not None:
            found[node] = scale
    return found


def _scale(lifter: Lifter, node: fx.Node, known: dict[fx.Node, Tensor]) -> Tensor | None:
    own = _norm(lifter, node)
    if own is not None:
        return own
    piece = lifter.lift(node)
    if isinstance(piece, Piece) and piece.join == "sum":
        parts = [_through(op, known.get(v)) for v, op in zip(piece.sources, piece.ops, strict=True)]
        told = [part for part in parts if part is not None]
        return torch.stack(told).norm(dim=0) if len(told) == len(parts) else None
    found = max_pool(lifter, node) or link(lifter, node)
    if not isinstance(found, Link):
        return None
    scale = known.get(found.source)
    for op in found.ops:
        scale = _through(op, scale)
    return scale


def _norm(lifter: Lifter, node: fx.Node) -> Tensor | None:
    """Return the scale of a norm, called as a layer or as a function."""
    if node.op == "call_module":
        module = submodule(lifter.capture.module, str(node.target))
        if not isinstance(module, _BatchNorm) or not issubclass(layer_class(module), _BatchNorm):
            return None
        ones = torch.ones(module.num_features, dtype=torch.float64)
        return _size(module.weight) if module.affine else ones
    call = canonical(node)
    if call is None or not call.name.endswith("batch_norm"):
        return None
    weight = lifter.tensor(call["weight"])
    return None if weight is None else _size(weight)


def _through(op: Operator, scale: Tensor | None) -> Tensor | None:
    """Return the scales behind an operator that keeps channels apart."""
    for part in chain(op):
        if scale is None:
            return None
        if isinstance(part, Affine):
            scale = scale if part.scale is None else scale * _size(part.scale)
        elif isinstance(part, Conv):
            is_mask = part.weight.shape == (len(scale), 1, *(1,) * len(part.axes))
            scale = scale * _size(part.weight).flatten() if is_mask else None
        elif not isinstance(part, (AvgPool, Identity, Resample)):
            return None
    return scale


def _size(weight: Tensor) -> Tensor:
    return weight.detach().abs().double().cpu()
