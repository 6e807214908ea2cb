"""Gains of norms that compute their statistics: into every layer that reads the norm, or into none.

LayerNorm, RMSNorm, GroupNorm and InstanceNorm normalise, which nothing folds, and then scale and
shift every channel, which the layers behind them can do. What stays is a norm without parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import fx, nn
from torch.nn import functional as F

from refold.algebra.operator import (
    Affine,
    Conv,
    Flatten,
    Identity,
    Input,
    Operator,
    Resample,
    chain,
)
from refold.errors import RefusedError
from refold.graph.calls import canonical, place_of, reads_shape_only
from refold.graph.copies.modules import submodule
from refold.graph.fold.fold_pass import FoldPass
from refold.graph.fold.lower import name_of_new
from refold.graph.fold.norms.takers import (
    Taker,
    conv_of,
    holds,
    is_layer,
    lowered,
    note,
    simplified,
)
from refold.graph.fold.region import Regions, source_of
from refold.graph.lift.lifter import Lifter
from refold.graph.lift.piece import Piece
from refold.graph.trace.overridden import layer_class

RULE = "norm gain into readers"


@dataclass(frozen=True, eq=False)
class _Gain:
    """What a norm does behind its statistics.

    Args:
        op: the scale and the shift of every channel.
        is_last: the channels lie along the last axis, not the second.
        remove: puts the same norm without them into the graph.
    """

    op: Affine
    is_last: bool
    remove: Callable[[FoldPass], None]


def push_gains(fold: FoldPass) -> None:
    """Give the gains of norms to the layers that read them; note why where that cannot be."""
    for node in list(fold.lifter.capture.graph.nodes):
        try:
            gain = _gain(fold.lifter, node)
            if gain is not None and (readers := _readers(fold.lifter, node, gain)):
                made = [taken_in(fold, reader, gain.op, path) for reader, path in readers.items()]
                write = partial(_push, fold, node, gain, list(readers), made)
                fold.attempt([node, *readers], write)
        except RefusedError as error:
            fold.keep(node, f"its gain stays: {error}")


def _gain(lifter: Lifter, node: fx.Node) -> _Gain | None:
    """Return the gain of a norm, None for any other call or where it has none.

    Raises:
        RefusedError: when it cannot be taken away.
    """
    if node.op == "call_function":
        return _gain_of_call(lifter, node)
    if node.op != "call_module":
        return None
    path = str(node.target)
    module: Any = submodule(lifter.capture.module, path)
    make = _BARE.get(layer_class(module))
    if make is None or getattr(module, "running_mean", None) is not None:
        return None
    scale, shift = module._parameters.get("weight"), module._parameters.get("bias")
    if scale is None and shift is None:
        return None
    if reason := holds(lifter, node):
        raise RefusedError(reason)
    is_last = isinstance(module, nn.LayerNorm | nn.RMSNorm)
    if is_last and len(module.normalized_shape) > 1:
        raise RefusedError("it differs from place to place, not only from channel to channel")
    bare = make(module)
    return _Gain(Affine(scale, shift), is_last, lambda fold: fold.editor.replace_module(node, bare))


def _gain_of_call(lifter: Lifter, node: fx.Node) -> _Gain | None:
    """Return the gain of a norm that is called as a function."""
    call = canonical(node)
    if call is None or call.name not in _CALLS:
        return None
    function, kept = _CALLS[call.name]
    weight, bias = call.arguments.get("weight"), call.arguments.get("bias")
    running = call.arguments.get("mean")
    if (weight is None and bias is None) or running is not None:
        return None
    found = lifter.weights(weight, bias)
    if not isinstance(found, list):
        raise RefusedError(found or "it is computed from the input")
    is_last = "normalized_shape" in kept
    if is_last and len(call["normalized_shape"]) > 1:
        raise RefusedError("it differs from place to place, not only from channel to channel")

    def remove(fold: FoldPass) -> None:
        options = {key: call[key] for key in kept}
        bare = fold.editor.insert_function(function, (call["input"],), options, before=node)
        if (shape := lifter.shape(node)) is not None:
            lifter.shapes[bare] = shape
        fold.editor.replace(node, bare)
        fold.touch([node], [bare])

    return _Gain(Affine(*found), is_last, remove)


Path = tuple[Operator, ...]
"""What lies between a norm and a layer, the layer last."""


def _readers(lifter: Lifter, node: fx.Node, gain: _Gain) -> dict[fx.Node, Path]:
    """Return the layers that read a norm, through changes of layout too; nothing where none does.

    Raises:
        RefusedError: when something else does, or one of them cannot take the gain in.
    """
    layers, views, others = _reached(lifter, node)
    if not layers:
        _check_products(lifter, others)
        return {}
    for value in (node, *views):
        if held := lifter.held(value):
            raise RefusedError(held)
    evidence = lifter.capture.evidence
    if evidence is not None and (reason := evidence.objection([node, *views, *layers], ())):
        raise RefusedError(reason)  # said now: a fold that goes ahead would have to start over
    for user in others:
        piece, name = lifter.lift(user), place_of(user)
        if isinstance(piece, str):
            raise RefusedError(f"{name} reads it: {piece}")
        raise RefusedError(f"{name} reads it as well, and takes in no gain")
    regions = Regions(lifter, frozenset(views))
    paths = {layer: path_to(regions, node, layer) for layer in layers}
    for layer, path in paths.items():
        if not _same_axis(lifter, node, gain, path[0]):
            raise RefusedError(f"{place_of(layer)} works along another axis than the norm")
    return paths


def _check_products(lifter: Lifter, readers: list[fx.Node]) -> None:
    """Tell where a norm's value is multiplied with a matrix by no layer that could take it in.

    Raises:
        RefusedError: when one of the readers does.
    """
    product = next((user for user in readers if _multiplies(lifter, user)), None)
    if product is not None:
        lifted, name = lifter.lift(product), place_of(product)
        if isinstance(lifted, str):
            raise RefusedError(f"{name} reads it: {lifted}")
        raise RefusedError(f"{name} is no linear layer along its channels")


def _is_written_out(lifter: Lifter, node: fx.Node, value: fx.Node) -> bool:
    """Say whether a call of a function is a linear layer or convolution of a value."""
    piece = lifter.lift(node)
    if not isinstance(piece, Piece) or node.op == "call_module" or piece.through:
        return False
    is_one = piece.join == "none" and isinstance(piece.ops[0], Conv) and piece.by_rank is None
    return is_one and piece.sources == (value,) and lifter.may_go(node)


def _multiplies(lifter: Lifter, node: fx.Node) -> bool:
    """Say whether a call mixes channels, so that one would expect it to take a gain in."""
    piece, call = lifter.lift(node), canonical(node)
    if isinstance(piece, Piece):
        return any(isinstance(part, Conv) for op in piece.ops for part in chain(op))
    return call is not None and call.name in _PRODUCTS


def _reached(lifter: Lifter, node: fx.Node) -> tuple[list[fx.Node], list[fx.Node], list[fx.Node]]:
    """Return the layers that a value reaches, the changes of layout on the way, other readers."""
    layers, views, others = list[fx.Node](), list[fx.Node](), list[fx.Node]()
    for value in (pending := [node]):
        for user in value.users:
            if reads_shape_only(user, value):
                continue
            is_module = is_layer(lifter, user) and list(user.all_input_nodes) == [value]
            if is_module or _is_written_out(lifter, user, value):
                layers.append(user)
            elif is_view(lifter, user):
                views.append(user)
                pending.append(user)
            else:
                others.append(user)
    return layers, views, others


def is_view(lifter: Lifter, node: fx.Node) -> bool:
    """Say whether a call only moves or averages positions."""
    piece = lifter.lift(node)
    if not isinstance(piece, Piece) or piece.join != "none" or piece.through:
        return False
    if isinstance(piece.ops[0], Resample):
        return True
    return isinstance(piece.ops[0], Identity)


def path_to(regions: Regions, node: fx.Node, layer: fx.Node) -> Path:
    """Return what a layer and the changes of layout before it do to a norm's value.

    Raises:
        RefusedError: when a change of layout moves the channels apart.
    """
    if node in layer.all_input_nodes:
        return (conv_of(regions.lifter, layer),)
    region = regions.region(layer)
    if region is not None:
        start, *parts = chain(region.op)
        if isinstance(start, Input) and start.key is node:
            return tuple(parts)
    raise RefusedError(f"the layout changes before {place_of(layer)} reads it")


def _same_axis(lifter: Lifter, node: fx.Node, gain: _Gain, op: Operator) -> bool:
    """Say whether the first operator after a norm takes its channels along the norm's axis."""
    rank = op.source_rank if isinstance(op, Resample) else None
    rank = len(op.axes) if isinstance(op, Conv) else rank
    rank = len(op.size) if isinstance(op, Flatten) else rank
    if gain.is_last and rank == 0:
        return True
    shape = lifter.shape(node)
    if shape is None or rank is None:
        return not gain.is_last and bool(rank)
    channel = len(shape) - 1 - rank
    return channel == (len(shape) - 1 if gain.is_last else 1)


def _push(
    fold: FoldPass, node: fx.Node, gain: _Gain, readers: list[fx.Node], made: list[Taker]
) -> bool:
    before = [conv_of(fold.lifter, reader) for reader in readers]
    gain.remove(fold)
    for reader, new in zip(readers, made, strict=True):
        if reader.op == "call_module":
            fold.editor.replace_module(reader, new.module)
        else:
            _write_layer(fold, reader, new)
    nodes, after = [node, *readers], (new.op for new in made)
    note(fold, RULE, nodes, [gain.op, *before], after, at=[node], detail=readers)
    return True


def _write_layer(fold: FoldPass, reader: fx.Node, new: Taker) -> None:
    """Put a layer in the place of a call of a function."""
    value, name = source_of(fold.lifter, reader), name_of_new(new.op)
    layer = fold.editor.insert_module(new.module, [value], before=reader, name=name)
    if (shape := fold.lifter.shape(reader)) is not None:
        fold.lifter.shapes[layer] = shape
    fold.touch([reader], [layer])
    fold.editor.replace(reader, layer)


def taken_in(fold: FoldPass, reader: fx.Node, gain: Affine, path: Path) -> Taker:
    """Return a reader that does what a gain before it and it did.

    Args:
        fold: the fold that it is a step of.
        reader: the layer.
        gain: the scale and the shift of every channel.
        path: what lies between the two, the layer last.

    Raises:
        RefusedError: when that is not one layer.
    """
    conv = conv_of(fold.lifter, reader)
    [*before, op], rewrite = simplified(fold, gain, *path)
    if not isinstance(op, Conv) or before != list(path[:-1]):
        reasons = "; ".join(refusal.reason for refusal in rewrite.refusals) or _why(gain, conv)
        raise RefusedError(f"{place_of(reader)} cannot take it in: {reasons}")
    return lowered(op, conv)


def _why(gain: Affine, conv: Conv) -> str:
    meets = gain.shift is not None and conv.zero_pads
    return "the shift meets zero padding" if meets else "it is not a single layer"


_PRODUCTS = frozenset({"einsum", "matmul", "bmm", "tensordot", "linear"})
_CALLS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "layer_norm": (F.layer_norm, ("normalized_shape", "eps")),
    "rms_norm": (F.rms_norm, ("normalized_shape", "eps")),
    "group_norm": (F.group_norm, ("num_groups", "eps")),
    "functional_instance_norm": (F.instance_norm, ("eps",)),
}
_BARE: dict[type, Callable[[Any], nn.Module]] = {
    nn.LayerNorm: lambda m: nn.LayerNorm(m.normalized_shape, m.eps, elementwise_affine=False),
    nn.RMSNorm: lambda m: nn.RMSNorm(m.normalized_shape, m.eps, elementwise_affine=False),
    nn.GroupNorm: lambda m: nn.GroupNorm(m.num_groups, m.num_channels, m.eps, affine=False),
    nn.InstanceNorm1d: lambda m: nn.InstanceNorm1d(m.num_features, m.eps),
    nn.InstanceNorm2d: lambda m: nn.InstanceNorm2d(m.num_features, m.eps),
    nn.InstanceNorm3d: lambda m: nn.InstanceNorm3d(m.num_features, m.eps),
}
