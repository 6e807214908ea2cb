"""Give the gain and bias of a layer norm to the linear layers that read it.

A layer norm normalises, which is no affine map, then scales and shifts every channel, which is one.
Where every reader is a linear layer, the scale and shift go into all of them; what stays is a norm
without parameters. It is all readers or none: else one would still need the scaled value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

from torch import Tensor, fx, nn
from torch.nn import functional as F

from refold.algebra.operator import Affine, Conv, Sequence
from refold.errors import RefusedError
from refold.graph.calls import canonical, place_of, reads_shape_only
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
        gain = _gained(fold.lifter, node)
        if gain is None:
            continue
        readers = [user for user in node.users if not reads_shape_only(user, node)]
        layers = [user for user in readers if _is_linear(fold.lifter, node, user)]
        if not layers:
            continue
        reason = _objection(fold.lifter, node, gain, readers, layers)
        if reason is not None:
            fold.refused[node] = Kept(fold.path(node), reason)
        else:
            fold.attempt([node, *layers], partial(_push, fold, node, gain, layers))


@dataclass(frozen=True, eq=False)
class _Gain:
    """What a layer norm does after it has normalised.

    Args:
        path: where its parameters are, for a reason; "" for a call of a function.
        weight: the gain.
        bias: the bias.
        stored: the paths of both, below the root.
    """

    path: str
    weight: Tensor | None
    bias: Tensor | None
    stored: tuple[str, ...]

    @property
    def tensors(self) -> list[Tensor]:
        """What there is of the two."""
        return [tensor for tensor in (self.weight, self.bias) if tensor is not None]


def _gained(lifter: Lifter, node: fx.Node) -> _Gain | None:
    """Return the gain of a layer norm of one axis, None for any other node."""
    if node.op == "call_function":
        return _function(lifter, node)
    if node.op != "call_module" or str(node.target) in lifter.capture.pinned:
        return None
    norm: Any = submodule(lifter.capture.module, str(node.target))
    if layer_class(norm) not in _NORMS or len(norm.normalized_shape) != 1:
        return None
    stored = tuple(f"{node.target}.{name}" for name, _ in norm.named_parameters())
    found = _Gain(str(node.target), norm.weight, getattr(norm, "bias", None), stored)
    return found if found.tensors else None


def _function(lifter: Lifter, node: fx.Node) -> _Gain | None:
    call = canonical(node)
    if call is None or call.name not in ("layer_norm", "rms_norm") or node in lifter.capture.stays:
        return None
    shape = call["normalized_shape"]
    given = [call.arguments.get(name) for name in ("weight", "bias")]
    tensors = [lifter.tensor(value) for value in given]
    told = isinstance(shape, (tuple, list)) and len(cast("list[Any]", shape)) == 1
    if not told or [v is None for v in given] != [t is None for t in tensors]:
        return None
    nodes = [value for value in given if isinstance(value, fx.Node)]
    stored = tuple(path for value in nodes for path in lifter.constants.sources(value))
    return _Gain("", *tensors, stored) if nodes else None


def _is_linear(lifter: Lifter, node: fx.Node, reader: fx.Node) -> bool:
    """Say whether a reader is a linear layer of its own, which may change."""
    if reader.op != "call_module" or reader.args != (node,) or reader.kwargs:
        return False
    layer = submodule(lifter.capture.module, str(reader.target))
    piece = lifter.lift(reader)
    return layer_class(layer) is nn.Linear and isinstance(piece, Piece)


def _objection(
    lifter: Lifter, node: fx.Node, gain: _Gain, readers: list[fx.Node], layers: list[fx.Node]
) -> str | None:
    if node in lifter.tainted:
        return lifter.tainted[node]
    if node in lifter.capture.elsewhere:
        return lifter.capture.elsewhere[node]
    if lifter.capture.calls.get(gain.path, 1) > 1:
        return f"its gain stays: the module is called {lifter.capture.calls[gain.path]} times"
    for path in gain.stored:
        if reason := lifter.constants.shared(path):
            return f"its gain stays: {reason}"
    others = [user for user in readers if user not in layers]
    if others:
        names = ", ".join(dict.fromkeys(place_of(user) for user in others))
        return f"its gain stays: {names} reads it as well, and takes in no gain"
    return None


def _push(fold: FoldPass, node: fx.Node, gain: _Gain, layers: list[fx.Node]) -> bool:
    affine = Affine(gain.weight, gain.bias)
    made: list[tuple[fx.Node, nn.Module]] = []
    before = sum(tensor.numel() for tensor in gain.tensors)
    for reader in layers:
        layer: Any = submodule(fold.lifter.capture.module, str(reader.target))
        before += sum(p.numel() for p in layer.parameters())
        op = fold_affine_ahead_of_conv(Sequence((affine, Conv(layer.weight, layer.bias))))
        assert isinstance(op, Conv)
        like = like_of([layer.weight, *gain.tensors], 0)
        try:
            made.append((reader, lower(op, replace(like, dtype=layer.weight.dtype))))
        except RefusedError as error:
            fold.refused[node] = Kept(fold.path(node), str(error))
            return False
    where = fold.path(node)
    for reader, taken in made:
        fold.editor.replace_module(reader, taken)
    _bare(fold, node)
    fold.edited()
    names = " + ".join(place_of(reader) for reader in layers)
    after = sum(p.numel() for _, taken in made for p in taken.parameters())
    fold.folds.append(Fold(where, RULE, names, before, after))
    return True


def _bare(fold: FoldPass, node: fx.Node) -> None:
    """Leave a norm without gain and bias."""
    if node.op == "call_module":
        norm: Any = submodule(fold.lifter.capture.module, str(node.target))
        kind = nn.LayerNorm if layer_class(norm) is nn.LayerNorm else nn.RMSNorm
        bare = kind(norm.normalized_shape, norm.eps, elementwise_affine=False)
        fold.editor.replace_module(node, bare)
        return
    call = canonical(node)
    assert call is not None
    function: Any = F.layer_norm if call.name == "layer_norm" else F.rms_norm
    arguments = call["input"], call["normalized_shape"]
    made = fold.editor.insert_function(function, arguments, {"eps": call["eps"]}, before=node)
    if (shape := fold.lifter.shape(node)) is not None:
        fold.lifter.shapes[made] = shape
    fold.touch([node], [made])
    fold.editor.replace(node, made)
    fold.editor.sweep()
