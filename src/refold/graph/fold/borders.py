"""Padded maps whose border is then overwritten with what the layer before makes of zero.

`y = F.pad(norm(x), …); y[:, :, 0:p] = v; …` with v the norm's value of 0 is how several authors
write a padding in front of the norm: `norm(F.pad(x, …))`. So it is spelled here before anything is
folded. The same holds for a pointwise convolution and its bias.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from refold.algebra.operator import Affine, Conv, Operator
from refold.graph.calls import canonical
from refold.graph.copies.modules import submodule
from refold.graph.lift.lifter import Lifter
from refold.graph.lift.modules import lift_module
from refold.graph.lift.piece import Piece
from refold.graph.surgery.editor import Editor

_CONVS = ("conv1d", "conv2d", "conv3d")


@dataclass(frozen=True, eq=False)
class _Border:
    """A padded map with an overwritten border.

    Args:
        pad: the call that pads.
        writes: the assignments to its border.
        layer: the call whose value is padded.
        source: what the layer reads.
        amounts: what the call pads.
    """

    pad: fx.Node
    writes: list[fx.Node]
    layer: fx.Node
    source: fx.Node
    amounts: list[int]


def pad_before_layers(lifter: Lifter, editor: Editor) -> bool:
    """Pad in front of a layer where the border behind it is its value of zero; say if anywhere."""
    nodes = list(lifter.capture.graph.nodes)
    if not any(node.target is operator.setitem for node in nodes):
        return False
    found = [_border(lifter, node) for node in nodes]
    borders = [border for border in found if border is not None]
    for border in borders:
        padded = editor.insert_function(F.pad, (border.source, border.amounts), before=border.layer)
        editor.reread(border.layer, border.source, padded)
        editor.replace(border.pad, border.layer)
        editor.discard([border.pad, *border.writes])
        _note_shapes(lifter, border, padded)
    if borders:
        editor.sweep()
    return bool(borders)


def _note_shapes(lifter: Lifter, border: _Border, padded: fx.Node) -> None:
    shapes = lifter.capture.shapes
    before, after = shapes.get(border.source), shapes.get(border.pad)
    if before is not None and after is not None:
        shapes[padded] = (*before[:2], *after[2:])
        shapes[border.layer] = after


def _border(lifter: Lifter, node: fx.Node) -> _Border | None:
    call = canonical(node)
    if call is None or call.name != "pad" or call["mode"] != "constant" or call["value"]:
        return None
    layer, amounts, shape = call["input"], call["pad"], lifter.shape(node)
    if not isinstance(layer, fx.Node) or set(layer.users) != {node} or shape is None:
        return None
    plain = isinstance(amounts, (tuple, list)) and len(amounts) == 2 * (len(shape) - 2)
    if not plain or not all(isinstance(n, int) and n >= 0 for n in amounts):
        return None
    users = sorted(node.users)
    writes = [user for user in users if user.target is operator.setitem and user.args[0] is node]
    if not writes or users[: len(writes)] != writes or any(write.users for write in writes):
        return None
    unsure = lifter.capture.stays.keys() | lifter.capture.elsewhere.keys()
    if not unsure.isdisjoint((node, layer, *writes)):
        return None
    image = _image_of_zero(lifter, layer)
    if image is None or not _covers(lifter, writes, list(amounts), shape, image[1]):
        return None
    return _Border(node, writes, layer, image[0], list(amounts))


def _image_of_zero(lifter: Lifter, layer: fx.Node) -> tuple[fx.Node, Tensor] | None:
    """Return what a layer reads and what it makes of 0, in every channel, if it is pointwise."""
    source = layer.args[0] if layer.args else layer.kwargs.get("input")
    if not isinstance(source, fx.Node) or source in lifter.tainted:
        return None
    if layer.op == "call_function":
        bias = _bias(lifter, layer)
        return None if bias is None else (source, bias)
    path = str(layer.target)
    if layer.op != "call_module" or path in lifter.capture.pinned:
        return None
    if lifter.capture.calls.get(path, 1) > 1:
        return None
    module = submodule(lifter.capture.module, path)
    piece = lift_module(module, source, lifter.shape(source))
    value = _of_zero(piece.ops[0]) if isinstance(piece, Piece) else None
    return None if value is None else (source, value)


def _of_zero(op: Operator) -> Tensor | None:
    if isinstance(op, Affine):
        return op.shift
    if isinstance(op, Conv) and not op.transposed:
        pointwise = all(a.kernel == a.stride == 1 and a.lo == a.hi == 0 for a in op.axes)
        return op.bias if pointwise and op.axes else None
    return None


def _bias(lifter: Lifter, layer: fx.Node) -> Tensor | None:
    """Return the bias of a pointwise convolution that is called as a function."""
    name = getattr(layer.target, "__name__", "")
    call = canonical(layer)
    if call is None or name not in _CONVS:
        return None
    weight, bias = (lifter.tensor(call[key]) for key in ("weight", "bias"))
    if weight is None or bias is None or any(size != 1 for size in weight.shape[2:]):
        return None
    steps = [call.arguments.get(key, default) for key, default in (("stride", 1), ("padding", 0))]
    flat = [set(s) if isinstance(s, (tuple, list)) else {s} for s in steps]
    return bias if flat == [{1}, {0}] else None


def _covers(
    lifter: Lifter,
    writes: list[fx.Node],
    amounts: list[int],
    shape: tuple[int, ...],
    image: Tensor,
) -> bool:
    """Say whether the writes put this value into the whole of the border, and nowhere else."""
    sides: dict[tuple[int, bool], int] = {}
    for write in writes:
        _, index, written = write.args
        value = lifter.constants.value(written) if isinstance(written, fx.Node) else written
        side = _side(index, len(shape))
        if side is None or not _is_value(value, image, len(shape)):
            return False
        sides[side[0], side[1]] = side[2]
    axes = range(len(shape) - 1, 1, -1)
    wanted = {
        (axis, is_end): amounts[2 * at + is_end]
        for at, axis in enumerate(axes)
        for is_end in (False, True)
        if amounts[2 * at + is_end]
    }
    return sides == wanted


def _side(index: Any, rank: int) -> tuple[int, bool, int] | None:
    """Return the axis, the end and the width of a slice along one spatial axis."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in [part for part in parts if part is Ellipsis]:
        at = next(i for i, part in enumerate(parts) if part is Ellipsis)
        parts[at : at + 1] = [slice(None)] * (rank - len(parts) + 1)
    cuts = [(axis, part) for axis, part in enumerate(parts) if part != slice(None)]
    if len(cuts) != 1 or len(parts) > rank or not isinstance(cuts[0][1], slice):
        return None
    axis, cut = cuts[0]
    if axis < 2 or cut.step not in (None, 1):
        return None
    if cut.start in (None, 0) and isinstance(cut.stop, int) and cut.stop > 0:
        return axis, False, cut.stop
    if cut.stop is None and isinstance(cut.start, int) and cut.start < 0:
        return axis, True, -cut.start
    return None


def _is_value(value: Any, image: Tensor, rank: int) -> bool:
    """Say whether a value, broadcast, is this number in every channel, but for rounding."""
    if isinstance(value, (int, float)):
        value = torch.tensor(float(value), dtype=torch.float64)
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.is_meta:
        return False
    laid = value.reshape((1,) * (rank - value.ndim) + tuple(value.shape))
    if laid.ndim != rank or laid.numel() not in (1, image.numel()):
        return False
    if laid.numel() > 1 and laid.shape[1] != image.numel():
        return False
    given, known = laid.detach().double().flatten(), image.detach().double().to(laid.device)
    slack = 32 * torch.finfo(value.dtype).eps * known.abs().max().clamp(min=1e-30)
    return bool(((given - known).abs() <= slack).all())
