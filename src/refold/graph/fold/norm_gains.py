"""Give the gain and bias of a layer norm to the linear layers that read it.

A layer norm normalises, which is no affine map, then scales and shifts every channel, which is one.
Where every reader is a linear layer, the scale and shift go into all of them; what stays is a norm
without parameters. It is all readers or none: else one would still need the scaled value.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import fx, nn

from refold.algebra.operator import Affine, Conv, Sequence
from refold.errors import RefusedError
from refold.graph.calls import place_of, reads_shape_only
from refold.graph.copies.modules import submodule
from refold.graph.fold.fold_pass import FoldPass
from refold.graph.fold.lower import like_of, lower
from refold.graph.fold.record import Fold, Kept
from refold.graph.lift.lifter import Lifter
from refold.graph.lift.piece import Piece
from refold.graph.trace.genuine import layer_class
from refold.rules.norm import fold_affine_ahead_of_conv

RULE = "norm gain into readers"
_NORMS = (nn.LayerNorm, nn.RMSNorm)


def push_gains(fold: FoldPass) -> None:
    """Give the gain of every layer norm to its readers, where all of them are linear layers."""
    for node in list(fold.lifter.capture.graph.nodes):
        norm = _gained(fold.lifter, node)
        if norm is None:
            continue
        readers = [user for user in node.users if not reads_shape_only(user, node)]
        layers = [user for user in readers if _is_linear(fold.lifter, node, user)]
        if not layers:
            continue
        reason = _objection(fold.lifter, node, norm, readers, layers)
        if reason is not None:
            fold.refused[node] = Kept(fold.path(node), reason)
        else:
            fold.attempt([node, *layers], partial(_push, fold, node, norm, layers))


def _gained(lifter: Lifter, node: fx.Node) -> Any:
    """Return the layer norm that a node calls, if it has a gain or a bias."""
    if node.op != "call_module":
        return None
    norm: Any = submodule(lifter.capture.module, str(node.target))
    if layer_class(norm) not in _NORMS or len(norm.normalized_shape) != 1:
        return None
    has = norm.weight is not None or getattr(norm, "bias", None) is not None
    return norm if has and str(node.target) not in lifter.capture.pinned else None


def _is_linear(lifter: Lifter, node: fx.Node, reader: fx.Node) -> bool:
    """Say whether a reader is a linear layer of its own, which may change."""
    if reader.op != "call_module" or reader.args != (node,) or reader.kwargs:
        return False
    layer = submodule(lifter.capture.module, str(reader.target))
    piece = lifter.lift(reader)
    return layer_class(layer) is nn.Linear and isinstance(piece, Piece)


def _objection(
    lifter: Lifter, node: fx.Node, norm: Any, readers: list[fx.Node], layers: list[fx.Node]
) -> str | None:
    path = str(node.target)
    if node in lifter.tainted:
        return lifter.tainted[node]
    if node in lifter.capture.elsewhere:
        return lifter.capture.elsewhere[node]
    if lifter.capture.calls.get(path, 1) > 1:
        return f"its gain stays: the module is called {lifter.capture.calls[path]} times"
    for name, tensor in norm.named_parameters():
        if reason := lifter.constants.shared(f"{path}.{name}") or lifter.capture.changing(tensor):
            return f"its gain stays: {reason}"
    others = [user for user in readers if user not in layers]
    if others:
        names = ", ".join(dict.fromkeys(place_of(user) for user in others))
        return f"its gain stays: {names} reads it as well, and takes in no gain"
    return None


def _push(fold: FoldPass, node: fx.Node, norm: Any, layers: list[fx.Node]) -> bool:
    gain = Affine(norm.weight, getattr(norm, "bias", None))
    made: list[tuple[fx.Node, nn.Module]] = []
    before = sum(p.numel() for p in norm.parameters())
    after = 0
    for reader in layers:
        layer: Any = submodule(fold.lifter.capture.module, str(reader.target))
        before += sum(p.numel() for p in layer.parameters())
        op = fold_affine_ahead_of_conv(Sequence((gain, Conv(layer.weight, layer.bias))))
        assert isinstance(op, Conv)
        try:
            tensors = [layer.weight, *norm.parameters()]
            taken = lower(op, replace(like_of(tensors, 0), dtype=layer.weight.dtype))
        except RefusedError as error:
            fold.refused[node] = Kept(fold.path(node), str(error))
            return False
        after += sum(p.numel() for p in taken.parameters())
        made.append((reader, taken))
    for reader, taken in made:
        fold.editor.replace_module(reader, taken)
    fold.editor.replace_module(node, _bare(norm))
    fold.edited()
    names = " + ".join(place_of(reader) for reader in layers)
    fold.folds.append(Fold(fold.path(node), RULE, names, before, after))
    return True


def _bare(norm: Any) -> nn.Module:
    """Return the norm without gain and bias."""
    kind = nn.LayerNorm if layer_class(norm) is nn.LayerNorm else nn.RMSNorm
    return kind(norm.normalized_shape, norm.eps, elementwise_affine=False)
