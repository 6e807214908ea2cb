"""The affine operators: each means x -> A x + b on feature maps (N, C, *spatial).

Leaves hold tensors and explicit geometry; `Sequence`, `Sum` and `Concat` combine them lazily.
Nothing is computed until a rule, `apply` or `to_dense` asks, nothing detaches, and nothing is ever
changed in place. Rank is the number of spatial axes: a `torch.nn.Linear` is a `Conv` of rank 0, so
every law proven for convolutions holds for it too.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from refold.algebra.geometry import Axes, Axis
from refold.errors import GeometryError


@dataclass(frozen=True, eq=False)
class Operator:
    """An affine map. Operators compare by identity, since tensors have no truth value.

    Args:
        made_of: what a leaf came from, in the words of whoever made the first leaves; a rule's new
            leaves are made of those it took away. No rule asks for it.
    """

    made_of: frozenset[Hashable] = field(default=frozenset(), kw_only=True, repr=False)


@dataclass(frozen=True, eq=False)
class Input(Operator):
    """The value that a branch starts from; equal keys are the same value.

    Args:
        key: names the value.
        channels: its channels where they are known.
    """

    key: Hashable = "x"
    channels: int | None = None


@dataclass(frozen=True, eq=False)
class Conv(Operator):
    """A convolution, a transposed convolution, or (rank 0) a linear layer.

    Shape:
        weight (O, I/groups, *kernel), transposed (I, O/groups, *kernel); bias (O,) or None.

    Args:
        axes: one window per spatial axis; `kernel` must equal the weight's.
        mode: what lies beyond the border, torch's `padding_mode`.
    """

    weight: Tensor
    bias: Tensor | None = None
    axes: Axes = ()
    groups: int = 1
    mode: str = "zeros"
    transposed: bool = False

    def __post_init__(self) -> None:
        kernel = tuple(self.weight.shape[2:])
        if kernel != tuple(axis.kernel for axis in self.axes):
            raise GeometryError(f"weight {tuple(self.weight.shape)} does not fit axes {self.axes}")
        mixed = any(min(axis.lo, axis.hi) < 0 < max(axis.lo, axis.hi) for axis in self.axes)
        if mixed and self.mode == "circular":
            reason = "a crop on one side changes what a circular ring repeats on the other"
            raise GeometryError(reason)
        if self.weight.shape[0] % self.groups:
            raise GeometryError(f"{self.weight.shape[0]} channels do not split into {self.groups}")

    @property
    def in_channels(self) -> int:
        """Channels that enter."""
        return self.weight.shape[0] if self.transposed else self.weight.shape[1] * self.groups

    @property
    def out_channels(self) -> int:
        """Channels that leave."""
        return self.weight.shape[1] * self.groups if self.transposed else self.weight.shape[0]

    @property
    def is_pointwise(self) -> bool:
        """Whether every output position reads its own input position only."""
        return all(axis.is_point for axis in self.axes)

    @property
    def zero_pads(self) -> bool:
        """Whether the border is filled with zeros that an added constant would not pass."""
        gathers = not self.transposed and self.mode == "zeros"
        return gathers and any(axis.pads for axis in self.axes)


@dataclass(frozen=True, eq=False)
class Affine(Operator):
    """A scale and a shift per channel: eval batch norm, LayerScale, `x * c`, `x + c`.

    Shape:
        scale and shift (C,), or () for the same factor on every channel; None means 1 and 0.
    """

    scale: Tensor | None = None
    shift: Tensor | None = None

    @property
    def channels(self) -> int | None:
        """How many channels it is for, None where any number will do."""
        sizes = (v.shape[0] for v in (self.scale, self.shift) if v is not None and v.ndim)
        return next(sizes, None)

    def each(self, change: Callable[[Tensor], Tensor]) -> Affine:
        """Return it with its numbers per channel changed; those for every channel stay."""
        vectors = (self.scale, self.shift)
        return Affine(*(v if v is None or v.ndim == 0 else change(v) for v in vectors))


@dataclass(frozen=True, eq=False)
class Identity(Operator):
    """The value itself."""


@dataclass(frozen=True, eq=False)
class Zero(Operator):
    """Zeros of the value's shape: a branch that gives nothing."""


@dataclass(frozen=True, eq=False)
class AvgPool(Operator):
    """An average over each window, border zeros counted.

    Args:
        axes: one window per spatial axis.
        divisor: what the sum is divided by; None means the window's size.
    """

    axes: Axes
    divisor: int | None = None

    @property
    def factor(self) -> float:
        """The weight of each tap."""
        return 1.0 / (self.divisor or prod(axis.kernel for axis in self.axes))

    @property
    def zero_pads(self) -> bool:
        """Whether border windows count zeros."""
        return any(axis.pads for axis in self.axes)


@dataclass(frozen=True, eq=False)
class Pad(Operator):
    """Rings around the map; negative amounts crop.

    Args:
        amounts: (before, after) per spatial axis.
        mode: torch's `padding_mode`.
        value: the constant of mode "zeros" where it is not 0.
    """

    amounts: tuple[tuple[int, int], ...]
    mode: str = "zeros"
    value: float = 0.0

    @property
    def grows(self) -> bool:
        """Whether any ring is added (otherwise the map is only cropped)."""
        return any(amount > 0 for pair in self.amounts for amount in pair)


@dataclass(frozen=True, eq=False)
class Select(Operator):
    """A choice of channels in some order: slice, chunk, permutation, channel shuffle.

    Args:
        index: input channel of each output channel.
        channels: how many channels enter.
    """

    index: tuple[int, ...]
    channels: int

    @property
    def is_identity(self) -> bool:
        """Whether nothing moves."""
        return self.index == tuple(range(self.channels))


@dataclass(frozen=True, eq=False)
class Resample(Operator):
    """A map of positions that treats every channel alike and keeps constants.

    Global and adaptive pooling, interpolation, means and changes of layout (flatten to tokens,
    channels last) are of this kind: scales, shifts and pointwise convolutions pass through them.

    Args:
        function: what it does to a tensor.
        rank: spatial axes of the result.
        density: output positions per input position, 0 for a global mean.
        source_rank: spatial axes of what enters.
        counted: whether it fits its own number of channels only, as a reshape that names it.
    """

    function: Callable[[Tensor], Tensor]
    rank: int
    density: float = 1.0
    source_rank: int = 2
    counted: bool = False


@dataclass(frozen=True, eq=False)
class Flatten(Operator):
    """A map (C, *size) in one row (C * positions,), followed by `rank` axes of one position."""

    size: tuple[int, ...]
    rank: int = 0

    @property
    def positions(self) -> int:
        """Numbers of the row that come from one channel."""
        return prod(self.size)


@dataclass(frozen=True, eq=False)
class Patches(Operator):
    """What a convolution's windows read, as channels: (C, *size) -> (C * taps, *positions).

    Args:
        axes: one window per spatial axis; zeros lie beyond the border.
        order: how the new channels count: 0 stands for the old channel and 1, 2, … for the tap
            along each axis, the slowest first.
    """

    axes: Axes
    order: tuple[int, ...]

    @property
    def kernel(self) -> tuple[int, ...]:
        """Taps of a window along each axis."""
        return tuple(axis.kernel for axis in self.axes)

    @property
    def zero_pads(self) -> bool:
        """Whether windows at the border hold zeros."""
        return any(axis.pads for axis in self.axes)


def blocks(*steps: int) -> Axes:
    """Return the windows that cut a map into blocks."""
    return tuple(Axis(step, step) for step in steps)


@dataclass(frozen=True, eq=False)
class Sequence(Operator):
    """Operators one after the other, the first applied first."""

    parts: tuple[Operator, ...]


@dataclass(frozen=True, eq=False)
class Sum(Operator):
    """Branches added."""

    parts: tuple[Operator, ...]


@dataclass(frozen=True, eq=False)
class Concat(Operator):
    """Branches laid side by side along the channels."""

    parts: tuple[Operator, ...]


@dataclass(frozen=True)
class Refusal:
    """A fold that was seen and not done.

    Args:
        rule: the rule that looked.
        reason: the precondition that fails, as a sentence.
        operators: the leaves it is about.
        costlier: True where the fold is legal but needs more multiply-adds.
    """

    rule: str
    reason: str
    operators: tuple[Operator, ...] = field(default=(), compare=False)
    costlier: bool = False


def sequence(*parts: Operator) -> Operator:
    """Chain operators, flat and without identities.

    Examples:
        >>> type(sequence(Identity(), Zero())).__name__
        'Zero'
    """
    flat: list[Operator] = []
    for part in parts:
        inner = part.parts if isinstance(part, Sequence) else (part,)
        flat.extend(op for op in inner if not isinstance(op, Identity))
    return flat[0] if len(flat) == 1 else Sequence(tuple(flat)) if flat else Identity()


def add(*parts: Operator) -> Operator:
    """Sum branches, flat: a sum inside a sum is one sum."""
    flat = [op for part in parts for op in (part.parts if isinstance(part, Sum) else (part,))]
    return flat[0] if len(flat) == 1 else Sum(tuple(flat))


def chain(op: Operator) -> tuple[Operator, ...]:
    """Return the operators of a chain in order."""
    return op.parts if isinstance(op, Sequence) else (op,)


def leaves(op: Operator) -> tuple[Operator, ...]:
    """Return every leaf below `op` in order of application, without inputs and identities."""
    found: list[Operator] = []
    _collect(op, found)
    return tuple(found)


def _collect(op: Operator, found: list[Operator]) -> None:
    if isinstance(op, (Sequence, Sum, Concat)):
        for part in op.parts:
            _collect(part, found)
    elif not isinstance(op, (Input, Identity)):
        found.append(op)


def made_of(*ops: Operator) -> frozenset[Hashable]:
    """Return what all the leaves below some operators came from."""
    return frozenset[Hashable]().union(*(leaf.made_of for op in ops for leaf in leaves(op)))


def noted(leaf: Operator, made_of: frozenset[Hashable]) -> Operator:
    """Return a leaf that says what it is made of; unlike `replace` it checks no geometry anew."""
    made = object.__new__(type(leaf))
    made.__dict__.update(leaf.__dict__, made_of=made_of)
    return made


def linear_part(op: Operator) -> Operator:
    """Return x -> A x of x -> A x + b: every constant left out."""
    if isinstance(op, Conv) and op.bias is not None:
        return Conv(op.weight, None, op.axes, op.groups, op.mode, op.transposed)
    if isinstance(op, Affine):
        return Affine(op.scale) if op.scale is not None else Identity()
    if isinstance(op, Pad):
        return Pad(op.amounts, op.mode)
    if isinstance(op, (Sequence, Sum, Concat)):
        return type(op)(tuple(linear_part(part) for part in op.parts))
    return op


def wide(tensor: Tensor) -> Tensor:
    """Return the tensor in float64 (complex untouched), the precision every fold computes in."""
    return tensor if tensor.is_complex() else tensor.to(torch.float64)


def points(rank: int) -> Axes:
    """Return the axes of a pointwise map."""
    return (Axis(),) * rank
