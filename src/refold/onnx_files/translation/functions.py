"""ONNX's functions in torch's words: arithmetic, elementwise functions, changes of layout."""

from __future__ import annotations

import operator
from functools import partial
from math import inf
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from refold.graph import HardGate
from refold.onnx_files.translation.layers import Builder
from refold.onnx_files.translation.network import Network

_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _binary(target: Any, network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    """Build a sum or product of two values, or of a value and a constant."""
    if given or len(node.input) != 2:  # opset 6 had a `broadcast` of its own
        return None
    args: list[fx.Node] = []
    for name in node.input:
        if network.is_value(name):
            args.append(network.value(name))
            continue
        constant = network.constant(name)
        if constant is None or not constant.is_floating_point():
            return None
        args.append(network.tensor(constant, node))
    stored = any(arg.op == "get_attr" for arg in args)
    if not stored and not network.is_float(node.output[0]):
        return None
    return network.function(target, tuple(args))


def _sum(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    if len(node.input) < 2 or not all(map(network.is_value, node.input)):
        return None
    return network.function(sum, ([network.value(name) for name in node.input],))


def _negative(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    if not network.is_float(node.output[0]):
        return None
    return network.function(torch.neg, (network.value(node.input[0]),))


def _elementwise(
    target: Any, allowed: dict[str, tuple[str, float]],
    network: Network, node: Any, given: dict[str, Any],
) -> fx.Node | None:  # fmt: skip
    """Build a function whose attributes are torch's arguments under other names."""
    if given.keys() - allowed.keys() or not network.is_float(node.output[0]):
        return None
    kwargs = {name: float(given.get(key, start)) for key, (name, start) in allowed.items()}
    return network.function(target, (network.value(node.input[0]),), kwargs)


def _plain(target: Any, **allowed: tuple[str, float]) -> Builder:
    return partial(_elementwise, target, allowed)


def _clip(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    bounds: list[float | None] = [given.get("min"), given.get("max")]
    for at, name in enumerate(node.input[1:3]):
        if name:
            bound = network.constant(name)
            if bound is None or bound.numel() != 1:
                return None
            bounds[at] = float(bound)
    low, high = (None if b is None or abs(b) in (inf,) else float(b) for b in bounds)
    if (low is None and high is None) or not network.is_float(node.output[0]):
        return None
    return network.function(torch.clamp, (network.value(node.input[0]), low, high))


def _hard_sigmoid(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    slope, offset = float(given.get("alpha", 0.2)), float(given.get("beta", 0.5))
    if slope < 0 or offset < 0 or not network.is_float(node.output[0]):
        return None
    return network.layer(HardGate(slope, offset), network.value(node.input[0]), node)


def _gelu(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    kind = given.get("approximate", "none")
    if kind not in ("none", "tanh") or not network.is_float(node.output[0]):
        return None
    return network.function(F.gelu, (network.value(node.input[0]),), {"approximate": kind})


def _threshold(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    if not network.is_float(node.output[0]):
        return None
    limit = float(given.get("alpha", 1.0))
    return network.function(F.threshold, (network.value(node.input[0]), limit, 0.0))


def _power(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    exponent = network.constant(node.input[1])
    if exponent is None or exponent.numel() != 1 or not network.is_float(node.output[0]):
        return None
    return network.function(torch.pow, (network.value(node.input[0]), float(exponent)))


def _prelu(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    slope, rank = network.constant(node.input[1]), network.rank(node.input[0])
    if slope is None or rank is None or rank < 2 or not slope.is_floating_point():
        return None
    channel = slope.shape[1 - rank] if slope.ndim >= rank - 1 else 1
    if slope.numel() not in (1, channel):
        return None
    layer = nn.PReLU(slope.numel(), device="meta")
    layer.weight = nn.Parameter(slope.reshape(-1), requires_grad=False)
    return network.layer(layer, network.value(node.input[0]), node)


def _concat(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    rank = network.rank(node.output[0])
    if not all(map(network.is_value, node.input)) or not network.is_float(node.output[0]):
        return None
    axis = int(given["axis"])
    if axis < 0 and rank is None:
        return None
    axis = axis + (rank or 0) if axis < 0 else axis
    return network.function(torch.cat, ([network.value(name) for name in node.input], axis))


def ints(
    network: Network, node: Any, given: dict[str, Any], name: str, at: int
) -> list[int] | None:
    """Return numbers that older opsets give as an attribute and newer ones as an input.

    None where there are none, or inputs decide them.
    """
    if name in given:
        value = given[name]
        return [int(v) for v in (value if isinstance(value, (list, tuple)) else [value])]
    if len(node.input) <= at or not node.input[at]:
        return None
    tensor = network.constant(node.input[at])
    return None if tensor is None else [int(v) for v in tensor.reshape(-1).tolist()]


def _pad(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    flat, rank = ints(network, node, given, "pads", 1), network.rank(node.input[0])
    mode = _MODES.get(given.get("mode", "constant"))
    if flat is None or rank is None or mode is None or not network.is_float(node.output[0]):
        return None
    axes = ints(network, node, given, "axes", 3) or list(range(rank))
    if len(node.input) > 3 and node.input[3] and network.constant(node.input[3]) is None:
        return None
    pairs: dict[int, tuple[int, int]] = dict.fromkeys(range(rank), (0, 0))
    for at, axis in enumerate(axes):
        pairs[axis % rank] = flat[at], flat[at + len(axes)]
    if any(pairs[axis] != (0, 0) for axis in (0, 1) if axis in pairs) or rank < 3:
        return None
    fill = _fill_value(network, node, given)
    if fill is None:
        return None
    amounts = [size for axis in reversed(range(2, rank)) for size in pairs[axis]]
    value = fill if mode == "constant" else None
    return network.function(F.pad, (network.value(node.input[0]), amounts, mode, value))


def _fill_value(network: Network, node: Any, given: dict[str, Any]) -> float | None:
    if len(node.input) > 2 and node.input[2]:
        tensor = network.constant(node.input[2])
        return None if tensor is None or tensor.numel() != 1 else float(tensor)
    return float(given.get("value", 0.0))


def _reshape(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    shape = ints(network, node, given, "shape", 1)
    if not network.is_float(node.output[0]):
        return None
    if shape is None:
        return _told_reshape(network, node)
    if given.get("allowzero") and 0 in shape:
        return None
    before = network.sizes.fixed(node.input[0])
    if 0 in shape:
        if before is None:
            return None
        kept = [before[i] if size == 0 else size for i, size in enumerate(shape)]
        free = [i for i, size in enumerate(kept) if size is None]
        if len(free) > 1 or (free and -1 in kept):
            return _flattened(network, node, shape, before)
        shape = [-1 if size is None else size for size in kept]
    return network.function(torch.reshape, (network.value(node.input[0]), tuple(shape)))


def _told_reshape(network: Network, node: Any) -> fx.Node | None:
    """Build a reshape whose sizes are computed from the input, though all but one are known."""
    after = network.sizes.fixed(node.output[0])
    if after is None or after.count(None) > 1 or 0 in after:
        return None
    sizes = tuple(-1 if size is None else size for size in after)
    made = network.function(torch.reshape, (network.value(node.input[0]), sizes))
    made.meta["anew"] = True
    return made


def _flattened(
    network: Network, node: Any, shape: list[int], before: tuple[int | None, ...]
) -> fx.Node | None:
    """Build a reshape that keeps leading axes and lays the others in one."""
    kept = len(shape) - 1
    if shape[-1] != -1 or any(shape[:-1]) or kept < 1 or kept >= len(before):
        return None
    return network.function(torch.flatten, (network.value(node.input[0]), kept))


def _flatten(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    rank = network.rank(node.input[0])
    if rank is None or rank < 2 or not network.is_float(node.output[0]):
        return None
    value, axis = network.value(node.input[0]), int(given.get("axis", 1)) % rank
    if axis == 1:
        return network.function(torch.flatten, (value, 1))
    return network.function(torch.flatten, (value, 0, rank - 2)) if axis == rank - 1 else None


def _transpose(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    rank = network.rank(node.input[0])
    if rank is None or not network.is_float(node.output[0]):
        return None
    order = tuple(given.get("perm") or reversed(range(rank)))
    return network.function(torch.permute, (network.value(node.input[0]), order))


def _squeeze(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    axes = ints(network, node, given, "axes", 1)
    if axes is None or len(axes) != 1 or not network.is_float(node.output[0]):
        return None
    return network.function(torch.squeeze, (network.value(node.input[0]), axes[0]))


def _unsqueeze(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    axes = ints(network, node, given, "axes", 1)
    if axes is None or len(axes) != 1 or not network.is_float(node.output[0]):
        return None
    return network.function(torch.unsqueeze, (network.value(node.input[0]), axes[0]))


def _slice(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    rank, source = network.rank(node.input[0]), network.value(node.input[0])
    starts, ends = (ints(network, node, given, *a) for a in (("starts", 1), ("ends", 2)))
    if rank is None or starts is None or ends is None or not network.is_float(node.output[0]):
        return None
    axes = ints(network, node, given, "axes", 3) or list(range(len(starts)))
    steps = ints(network, node, given, "steps", 4) or [1] * len(starts)
    for at, given_at in ((3, axes), (4, steps)):
        if len(node.input) > at and node.input[at] and network.constant(node.input[at]) is None:
            return None
        if len(given_at) != len(starts):
            return None
    if any(step < 1 for step in steps):
        return None
    entries = [slice(None)] * rank
    fixed = network.sizes.fixed(node.input[0]) or (None,) * rank
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        entries[axis % rank] = _entry(start, end, step, fixed[axis % rank])
    return network.function(operator.getitem, (source, tuple(entries)))


def _entry(start: int, end: int, step: int, size: int | None) -> slice:
    """Return a slice in the fewest words: None for what reaches the end."""
    if size is not None:
        first, last, _ = slice(start, end, step).indices(size)
        start, end = first, last if last < size else 1 << 40
    low = start if start else None
    return slice(low, None if end >= 1 << 31 - 1 else end, None if step == 1 else step)


def _split(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    fixed, axis = network.sizes.fixed(node.input[0]), int(given.get("axis", 0))
    sizes = ints(network, node, given, "split", 1)
    asked = len(node.input) > 1 and bool(node.input[1])
    if fixed is None or not network.is_float(node.output[0]) or (asked and sizes is None):
        return None
    axis, count = axis % len(fixed), len(node.output)
    if sizes is None:
        size = fixed[axis]
        if size is None or size % count:
            return None
        sizes = [size // count] * count
    return network.function(torch.split, (network.value(node.input[0]), sizes, axis))


def _split_to_sequence(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    """Build a split whose parts are read one by one, as PyTorch's exporter writes `chunk`."""
    fixed, name = network.sizes.fixed(node.input[0]), node.output[0]
    sizes = ints(network, node, {}, "split", 1)
    readers = network.readers.get(name, [])
    if fixed is None or not sizes or name in network.outputs or not readers:
        return None
    if any(r.op_type != "SequenceAt" or network.constant(r.input[1]) is None for r in readers):
        return None
    axis = int(given.get("axis", 0)) % len(fixed)
    size, split = fixed[axis], network.constant(node.input[1])
    if size is None or split is None or min(sizes) < 1:
        return None
    if split.ndim == 0:
        sizes = [min(sizes[0], size - at) for at in range(0, size, sizes[0])]
    return network.function(torch.split, (network.value(node.input[0]), sizes, axis))


def _sequence_at(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    parts, index = network.value(node.input[0]), network.constant(node.input[1])
    if parts.target is not torch.split or index is None:
        return None
    count = len(cast("list[int]", parts.args[1]))
    at = int(index)
    return network.function(operator.getitem, (parts, at + count if at < 0 else at))


def _mean(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    axes = ints(network, node, given, "axes", 1)
    if not axes or not network.is_float(node.output[0]) or given.get("noop_with_empty_axes"):
        return None
    keeps = bool(given.get("keepdims", 1))
    return network.function(torch.mean, (network.value(node.input[0]), tuple(axes), keeps))


def _gather(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    """Build a choice of channels."""
    rank, index = network.rank(node.input[0]), network.constant(node.input[1])
    if rank is None or index is None or index.ndim != 1 or not network.is_float(node.output[0]):
        return None
    fixed = network.sizes.fixed(node.input[0])
    axis = int(given.get("axis", 0)) % rank
    size = None if fixed is None else fixed[axis]
    if size is None:
        return None
    stored: Tensor = torch.where(index < 0, index + size, index).to(torch.int64)
    where = network.tensor(stored, node)
    return network.function(torch.index_select, (network.value(node.input[0]), axis, where))


def _einsum(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    """Build a sum of products of a value and a constant matrix."""
    if len(node.input) != 2 or not network.is_float(node.output[0]):
        return None
    args: list[fx.Node] = []
    for name in node.input:
        if network.is_value(name):
            args.append(network.value(name))
        elif (constant := network.constant(name)) is not None:
            args.append(network.tensor(constant, node))
        else:
            return None
    terms = str(given["equation"]).replace(" ", "")
    return network.function(torch.einsum, (terms, tuple(args)))


FUNCTIONS: dict[str, Builder] = {
    "Add": partial(_binary, operator.add),
    "Sub": partial(_binary, operator.sub),
    "Mul": partial(_binary, operator.mul),
    "Div": partial(_binary, operator.truediv),
    "Sum": _sum,
    "Neg": _negative,
    "Relu": _plain(F.relu),
    "Sigmoid": _plain(torch.sigmoid),
    "Tanh": _plain(torch.tanh),
    "Elu": _plain(F.elu, alpha=("alpha", 1.0)),
    "LeakyRelu": _plain(F.leaky_relu, alpha=("negative_slope", 0.01)),
    "HardSwish": _plain(F.hardswish),
    "Softplus": _plain(F.softplus),
    "Mish": _plain(F.mish),
    "Celu": _plain(F.celu, alpha=("alpha", 1.0)),
    "Selu": _plain(F.selu),
    "Softsign": _plain(F.softsign),
    "Erf": _plain(torch.erf),
    "Abs": _plain(torch.abs),
    "Sqrt": _plain(torch.sqrt),
    "Exp": _plain(torch.exp),
    "HardSigmoid": _hard_sigmoid,
    "Gelu": _gelu,
    "ThresholdedRelu": _threshold,
    "Pow": _power,
    "Clip": _clip,
    "PRelu": _prelu,
    "Concat": _concat,
    "Pad": _pad,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Slice": _slice,
    "Split": _split,
    "SplitToSequence": _split_to_sequence,
    "SequenceAt": _sequence_at,
    "ReduceMean": _mean,
    "Gather": _gather,
    "Einsum": _einsum,
}
"""How each function is built."""
