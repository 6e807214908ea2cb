"""Norms behind a max pool or a pixel shuffle, scales behind a ReLU: into the layer in front of it.

A maximum may be taken before or after a scale that is nowhere negative, and a shift; a ReLU before
or after such a scale alone; a shuffle lays each channel of the layer into one channel of the norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import inf
from typing import cast

import torch
from torch import Tensor, fx, nn

from refold.algebra.operator import Affine
from refold.graph.calls import canonical
from refold.graph.copies.modules import submodule
from refold.graph.fold.fold_pass import FoldPass
from refold.graph.fold.norms.takers import conv_of, holds, is_layer, note, taker
from refold.graph.layers import DepthToSpace
from refold.graph.lift.activations import activation
from refold.graph.lift.lifter import Lifter
from refold.graph.lift.piece import Piece
from refold.graph.trace.overridden import layer_class

_FALLS = "some of its scales are below zero, where the maximum before it would be a minimum"
RULE = "norm through pool or shuffle"
_POOLS = tuple(getattr(nn, f"{kind}MaxPool{n}d") for kind in ("", "Adaptive") for n in (1, 2, 3))
_POOL_CALLS = tuple(f"max_pool{n}d" for n in (1, 2, 3))


@dataclass(frozen=True, eq=False)
class Step:
    """A call between the layer and the norm.

    Args:
        node: the call.
        source: what it reads.
        repeats: how many channels of the layer make one of the norm.
        apart: whether these lie in as many blocks, not side by side.
        is_max: whether it takes maxima.
        bends: whether it is a line on either side of 0, which no shift passes.
    """

    node: fx.Node
    source: fx.Node
    repeats: int = 1
    apart: bool = False
    is_max: bool = False
    bends: bool = False


def pull_through_pools(fold: FoldPass) -> bool:
    """Give layers the norms behind their pools and shuffles; return whether any took one in."""
    done = False
    for norm in list(fold.lifter.capture.graph.nodes):
        piece = fold.lifter.lift(norm)
        if not isinstance(piece, Piece) or len(piece.sources) != 1 or piece.through:
            continue
        if not isinstance(piece.ops[0], Affine) or norm in fold.lifter.tainted:
            continue
        steps = _steps(fold.lifter, piece.sources[0])
        if steps:
            nodes = [steps[-1].source, *(step.node for step in steps), norm]
            done |= fold.attempt(nodes, partial(_pull, fold, norm, piece, steps))
    return done


def _steps(lifter: Lifter, value: fx.Node) -> list[Step]:
    """Return the calls before a value, the last first, up to a layer that they alone read."""
    steps = list[Step]()
    while len(value.users) == 1 and value not in lifter.tainted:
        if is_layer(lifter, value):
            return steps if holds(lifter, value) is None else []
        step = step_of(lifter, value)
        if step is None:
            return []
        steps.append(step)
        value = step.source
    return []


def step_of(lifter: Lifter, node: fx.Node) -> Step | None:
    """Return a call that a norm may pass, None for any other."""
    found = activation(lifter, node)
    if found is not None:
        ends = [end for end in found.bounds or () if isinstance(end, float)]
        is_relu = ends == [0.0, inf] or found.slope is not None
        single = node.op != "call_module" or lifter.capture.calls.get(str(node.target), 1) == 1
        return Step(node, found.source, is_max=True, bends=True) if is_relu and single else None
    if node.op == "call_module":
        path = str(node.target)
        layer = submodule(lifter.capture.module, path)
        kind, source = layer_class(layer), node.args[0] if node.args else None
        if path in lifter.capture.pinned or not isinstance(source, fx.Node):
            return None
        if kind is nn.PixelShuffle:
            return Step(node, source, repeats=cast(int, layer.upscale_factor) ** 2)
        if kind is DepthToSpace:
            return Step(node, source, repeats=cast(int, layer.factor) ** 2, apart=True)
        is_pool = kind in _POOLS and not layer.return_indices
        return Step(node, source, is_max=True) if is_pool else None
    call = canonical(node)
    if call is not None and call.name == "pixel_shuffle" and isinstance(call["factor"], int):
        return Step(node, call["input"], repeats=call["factor"] ** 2)
    is_pool = call is not None and call.name in _POOL_CALLS and not call["return_indices"]
    return Step(node, call["input"], is_max=True) if call is not None and is_pool else None


def _pull(fold: FoldPass, norm: fx.Node, piece: Piece, steps: list[Step]) -> bool:
    layer, op, [value] = steps[-1].source, piece.ops[0], piece.sources
    conv, shape = conv_of(fold.lifter, layer), fold.lifter.shape(norm)
    rank = len(conv.axes)
    if not isinstance(op, Affine) or piece.rank_in not in (None, rank) or piece.by_rank:
        return False
    if shape is None or len(shape) != rank + 2:
        return False
    affine = Affine(_spread(op.scale, steps), _spread(op.shift, steps))
    if any(step.bends for step in steps) and op.shift is not None:
        return False
    if any(step.is_max for step in steps) and not rises(op):
        fold.keep(norm, _FALLS)
        return False
    made = taker(fold, conv, affine)
    if made is None:
        return False
    fold.editor.replace_module(layer, made.module)
    fold.editor.bypass(norm, value)
    for step in steps:
        step.node.meta["rescaled"] = True
    note(fold, RULE, [layer, norm], [conv, op], [made.op], at=[layer])
    return True


def rises(op: Affine) -> bool:
    """Say whether no scale is below zero."""
    return op.scale is None or (not op.scale.is_meta and bool((op.scale >= 0).all()))


def _spread(tensor: Tensor | None, steps: list[Step]) -> Tensor | None:
    """Return the numbers of a norm for the channels of the layer in front."""
    for step in steps:
        if tensor is None or not tensor.ndim:
            return tensor
        if step.apart:
            tensor = tensor.repeat(step.repeats)
        elif step.repeats > 1:
            tensor = torch.repeat_interleave(tensor, step.repeats)
    return tensor
