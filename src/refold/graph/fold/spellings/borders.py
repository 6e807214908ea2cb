"""Padded maps whose border holds what the layer before makes of zero.

`y = F.pad(norm(x), …); y[:, :, 0:p] = v; …` with v the norm's value of 0 is how several authors
write a padding in front of the norm: `norm(F.pad(x, …))`. So it is spelled here before anything is
folded, whatever way the border was written. The same holds for a pointwise convolution's bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from math import prod

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from refold.algebra.operator import Affine, Conv, Operator
from refold.errors import RefusedError
from refold.graph.calls import is_question, place_of
from refold.graph.copies.modules import attribute, submodule
from refold.graph.fold.fold_pass import FoldPass
from refold.graph.fold.spellings.stretches import Stretch, free_values, growing, moves_numbers
from refold.graph.lift.lifter import Lifter
from refold.graph.lift.modules import lift_module
from refold.graph.lift.piece import Piece
from refold.graph.surgery.edits import alive

_CONVS = ("conv1d", "conv2d", "conv3d")
_BY_CHANNEL = ("functional_batch_norm", "batch_norm", "add", "sub", "rsub", "mul", "div")
_MOST_LAYERS = 4
_NEAR, _FAR = 24, 4096
_MOST_NUMBERS = 1 << 24
_Image = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class _Layer:
    """A call that maps each position alike.

    Args:
        node: the call.
        source: what it reads.
        image: what it makes of one value a channel (float64).
    """

    node: fx.Node
    source: fx.Node
    image: _Image


@dataclass(frozen=True, eq=False)
class _Border:
    """A padded map with the border of another padding.

    Args:
        end: the padded map.
        calls: what makes it.
        layers: the calls whose value is padded, the last one first; the padding belongs in front
            of them all.
        amounts: what `F.pad` is to pad there.
    """

    end: fx.Node
    calls: list[fx.Node]
    layers: list[_Layer]
    amounts: list[int]


def pad_before_layers(fold: FoldPass) -> bool:
    """Pad in front of a layer where the border behind it is its value of zero; say if anywhere."""
    free, done = cache(partial(free_values, fold.lifter)), False
    for node in sorted(growing(fold.lifter)):
        border = _border(fold, free, node) if alive(node) else None
        if border is not None:
            parts = [*border.calls, *(layer.node for layer in border.layers)]
            done |= fold.attempt(parts, partial(_pad_before, fold, border))
    if done:
        fold.editor.sweep()
    return done


def _pad_before(fold: FoldPass, border: _Border) -> bool:
    last, first = border.layers[0].node, border.layers[-1]
    others = [user for user in last.users if user not in border.calls]
    args = (first.source, border.amounts)
    padded = fold.editor.insert_function(F.pad, args, before=first.node)
    fold.editor.reread(first.node, first.source, padded)
    fold.editor.replace(border.end, last)
    fold.editor.discard(border.calls)
    shapes = fold.lifter.capture.shapes
    made, size = [padded], shapes[border.end][2:]
    if others:  # they read what lies within the padding
        back = [-amount for amount in border.amounts]
        inner = fold.editor.insert_function(F.pad, (last, back), before=last.next)
        made.append(inner)
        shapes[inner] = shapes[last]
        for user in others:
            fold.editor.reread(user, last, inner)
    fold.touch([*border.calls, *(layer.node for layer in border.layers)], made)
    for node in (first.source, *(layer.node for layer in border.layers)):
        shapes[padded if node is first.source else node] = (*shapes[node][:2], *size)
    return True


def _border(fold: FoldPass, free: Callable[[], set[fx.Node]], node: fx.Node) -> _Border | None:
    """Return the border behind a layer; note why where its numbers are others, or not free."""
    lifter = fold.lifter
    shape = lifter.shape(node)
    if shape is None or len(shape) < 3:
        return None
    layers = list(_layers(lifter, node))
    if not layers or layers[-1].source in lifter.tainted:
        return None
    if not any(_may_pad(lifter, free(), node, user) for user in node.users):
        return None
    above = (*(layer.node for layer in layers[1:]), layers[-1].source)
    stretch = Stretch.behind(lifter, free(), node, above)
    unsure = lifter.capture.stays.keys() | lifter.capture.elsewhere.keys()
    for calls, end in stretch.ends():
        try:
            found = _padding(stretch, calls, end, layers)
        except RefusedError as error:
            fold.keep(end, str(error))
            continue
        if found is not None and unsure.isdisjoint((*calls, *(at.node for at in found.layers))):
            return found
    return None


def _may_pad(lifter: Lifter, free: set[fx.Node], node: fx.Node, user: fx.Node) -> bool:
    others = set(user.all_input_nodes) - {node}
    return moves_numbers(lifter, user) and free.issuperset(others)


# the layers in front of a padding


def _layers(lifter: Lifter, node: fx.Node) -> Iterator[_Layer]:
    """Yield the layer that makes a value, the one before it that it alone reads, and so on."""
    for _ in range(_MOST_LAYERS):
        layer = _layer(lifter, node)
        if layer is None or lifter.shape(layer.source) is None:
            return
        yield layer
        node = layer.source
        if sum(not is_question(user) for user in node.users) > 1 or node in lifter.tainted:
            return


def _layer(lifter: Lifter, node: fx.Node) -> _Layer | None:
    if node.op == "call_function":
        return _function(lifter, node)
    path = str(node.target)
    if node.op != "call_module" or path in lifter.capture.pinned or not node.args:
        return None
    source = node.args[0]
    if not isinstance(source, fx.Node):
        return None
    piece = lift_module(submodule(lifter.capture.module, path), source, lifter.shape(source))
    if not isinstance(piece, Piece) or piece.join != "none" or piece.by_rank is not None:
        return None
    image = _image(piece.ops[0])
    return None if image is None else _Layer(node, source, image)


def _image(op: Operator) -> _Image | None:
    """Return what a layer makes of one number a channel, if it maps each position alike."""
    if isinstance(op, Affine):
        scale, shift = op.scale, op.shift
        wide = [tensor.detach().double() for tensor in (scale, shift) if tensor is not None]
        return lambda v: (v if scale is None else v * wide[0]) + (0 if shift is None else wide[-1])
    if not isinstance(op, Conv) or op.transposed or not op.axes:
        return None
    if not all(a.kernel == a.stride == 1 and a.lo == a.hi == 0 for a in op.axes):
        return None
    weight = op.weight.detach().double().flatten(2).squeeze(-1)[..., None]
    bias = None if op.bias is None else op.bias.detach().double()
    return lambda v: F.conv1d(v[None, :, None], weight, bias, groups=op.groups).flatten()


def _function(lifter: Lifter, node: fx.Node) -> _Layer | None:
    """Return the layer of a call of a function whose other arguments are constants.

    What the border holds may be told by the same tensors.
    """
    lifter.constants.join(lifter.constants.sources(node))
    lifter.lifted.pop(node, None)
    piece = lifter.lift(node)
    lifter.constants.join(())
    lifter.lifted.pop(node, None)
    shape = lifter.shape(node)
    if not isinstance(piece, Piece) or piece.join != "none" or piece.by_rank is not None:
        return None
    image = _image(piece.ops[0])
    fits = shape is not None and piece.rank_in in (None, len(shape) - 2)
    return _Layer(node, piece.sources[0], image) if image is not None and fits else None


# what the calls behind it compute


def _padding(
    stretch: Stretch, calls: list[fx.Node], end: fx.Node, layers: list[_Layer]
) -> _Border | None:
    """Return the border if the calls pad with what the layers make of zero, at every size."""
    lifter = stretch.lifter
    shape, after = lifter.shape(stretch.start), lifter.shape(end)
    if shape is None or after is None or len(shape) != len(after):
        return None
    added = [high - low for low, high in zip(shape, after, strict=True)]
    if added[:2] != [0, 0] or min(added) < 0 or not any(added):
        return None
    like, reach = _like(lifter, layers), stretch.reach()
    if like is None or reach > _FAR:
        return None
    noise, found = torch.Generator(like.device).manual_seed(0), None
    for size in _sizes(shape, reach):
        if prod(size) > _MOST_NUMBERS:
            return None
        value = torch.randn(size, dtype=like.dtype, device=like.device, generator=noise)
        made = stretch.run(calls, end, value)
        if made is None and size != shape:
            continue
        if made is None or tuple(made.shape) != tuple(map(sum, zip(size, added, strict=True))):
            return None
        found = found or _surround(value, made, lifter, layers, len(calls))
        if found is None or not _is_padded(value, made, *found[:2]):
            return None
    if found is None:
        return None
    _check_readers(lifter, layers[: found[2]], calls)
    pairs = [(low, more - low) for low, more in zip(found[0], added[2:], strict=True)]
    return _Border(end, calls, layers[: found[2]], [n for pair in reversed(pairs) for n in pair])


def _sizes(shape: tuple[int, ...], reach: int) -> list[tuple[int, ...]]:
    """Return the sizes to try: small ones, some that no number in the calls reaches, the recorded.

    The calls tell places apart by their distance from an edge, which is a number of theirs. What
    holds where the edges lie further apart than all these numbers holds for every larger size.
    """
    rank = len(shape) - 2
    small, far = tuple(range(3, 3 + rank)), tuple(reach + 2 + at for at in range(rank))
    tried = [small, (1,) * rank, (2,) * rank]
    for low in ((1,) * rank, small):
        tried += [(*low[:at], far[at], *low[at + 1 :]) for at in range(rank)]
    if reach <= _NEAR:
        tried.append(far)
    fixed = [(count, *shape[1:]) for count in (1, shape[0] + 1)]
    return [*((2, shape[1], *size) for size in tried), *fixed, shape]


def _like(lifter: Lifter, layers: list[_Layer]) -> Tensor | None:
    """Return a tensor of the layers, which tells type and device."""
    for layer in layers:
        for path in lifter.constants.sources(layer.node):
            tensor = attribute(lifter.capture.module, path)
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                return None if tensor.is_meta else tensor
    return None


def _place(index: int, sizes: torch.Size) -> list[int]:
    """Return where a number lies in a map; torch's own answer loads its compiler."""
    found: list[int] = []
    for size in reversed(sizes):
        index, at = divmod(index, size)
        found.append(at)
    return found[::-1]


def _surround(
    value: Tensor, made: Tensor, lifter: Lifter, layers: list[_Layer], calls: int
) -> tuple[list[int], Tensor, int] | None:
    """Return where a value lies in what was made of it, what is around it, and the layers.

    Raises:
        RefusedError: when several calls put one number a channel around it, of no layer's.
    """
    first = value[(0,) * value.ndim]
    nearest = int((made[0, 0] - first).abs().argmin())
    lows = _place(nearest, made.shape[2:])
    around = torch.ones(made.shape[2:], dtype=torch.bool, device=made.device)
    around[_inner(lows, value)] = False
    if not around.any():
        return None
    ring = made[0][:, around][:, 0]
    for count in range(1, len(layers) + 1):
        shape = lifter.shape(layers[count - 1].source)
        image = torch.zeros(shape[1] if shape else 0, dtype=torch.float64, device=made.device)
        for layer in reversed(layers[:count]):
            image = layer.image(image)
        if image.shape == ring.shape and image.any() and _is_close(ring, image, image):
            return lows, image, count
    if calls > 1 and ring.any() and bool((made[0][:, around] == ring[:, None]).all()):
        name = place_of(layers[0].node)
        raise RefusedError(f"its border holds other numbers than {name} makes of 0")
    return None


def _inner(lows: list[int], value: Tensor) -> tuple[slice, ...]:
    sizes = zip(lows, value.shape[2:], strict=True)
    return tuple(slice(low, low + size) for low, size in sizes)


def _is_padded(value: Tensor, made: Tensor, lows: list[int], image: Tensor) -> bool:
    """Say whether a map is the value with these numbers around it, but for rounding."""
    inner = (slice(None), slice(None), *_inner(lows, value))
    whole = image.reshape(1, -1, *(1,) * len(lows)).expand(made.shape).clone()
    if made.dtype != value.dtype or made[inner].shape != value.shape:
        return False
    if not _is_close(made[inner], value.double(), torch.cat((value.double().flatten(), image))):
        return False
    whole[inner] = made[inner].double()
    return _is_close(made, whole, image)


def _is_close(given: Tensor, known: Tensor, scale: Tensor) -> bool:
    slack = 32 * torch.finfo(given.dtype).eps * scale.abs().max().clamp(min=1e-30)
    return bool(((given.detach().double() - known).abs() <= slack).all())


def _check_readers(lifter: Lifter, layers: list[_Layer], calls: list[fx.Node]) -> None:
    """Refuse layers that something but these calls reads, or that are called a second time.

    What the last layer gives, others may read as well: it lies within the padded map.
    """
    inside = {*calls, *(layer.node for layer in layers)}
    for layer in layers:
        path, name = str(layer.node.target), place_of(layer.node)
        again = sum(node.op == "call_module" and node.target == path for node in calls)
        times = lifter.capture.calls.get(path, 1) if layer.node.op == "call_module" else 1
        if times - again > 1:
            raise RefusedError(f"{name} is called {times - again} times")
        lends = layer is layers[0] and layer.node not in lifter.tainted
        others = set(layer.node.users) - inside
        if others and not lends:
            raise RefusedError(f"the value of {name} is also read by {place_of(min(others))}")
