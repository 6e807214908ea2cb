"""Whole cases of random trees: one target or two, several sources, scattering, and wild ones."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from random import Random

from helpers.strategies import MODES, SIZES, Case, Maker
from refold.algebra.geometry import Axis
from refold.algebra.operator import (
    AvgPool,
    Concat,
    Conv,
    Flatten,
    Identity,
    Input,
    Operator,
    Pad,
    Select,
    Sum,
    Zero,
    add,
    points,
    sequence,
)
from refold.algebra.row import Unflatten, size_after
from rules.grow import Grower, Spec


def foldable(rng: Random) -> Case:
    """Return a case that knows its minimal number of leaves."""
    return rng.choice([one_target, one_target, several_sources, two_targets, scattered])(rng)


def one_target(rng: Random) -> Case:
    grower = Grower(rng)
    spec = grower.target()
    op = grower.grow(spec, rng.randint(1, 4))
    return Case(op, (spec.inputs, *SIZES[grower.rank]), grower.rank, 1, {})


def several_sources(rng: Random) -> Case:
    """Branches from different values, added or side by side: one convolution a value remains."""
    grower = Grower(rng)
    spec = grower.target()
    sources: dict[object, int] = {name: rng.randint(1, 3) for name in "abc"[: rng.randint(2, 3)]}
    after = Spec(spec.outputs, rng.randint(1, 3), points(grower.rank))
    if rng.random() < 0.5:
        branches = [(name, spec.outputs) for name in sources for _ in range(rng.randint(1, 2))]
        rng.shuffle(branches)
        join = Sum
    else:
        branches = [(name, rng.randint(1, 3)) for name in sources]
        after, join = replace(after, inputs=sum(n for _, n in branches)), Concat
    trees = [
        sequence(
            Input(name, sources[name]),
            grower.grow(replace(spec, inputs=sources[name], outputs=outputs), rng.randint(0, 2)),
        )
        for name, outputs in branches
    ]
    op: Operator = join(tuple(trees))
    if join is Concat or rng.random() < 0.5:
        op = sequence(op, grower.grow(after, rng.randint(0, 2)))
    elif rng.random() < 0.5:
        op = sequence(op, grower.affine(spec.outputs, constant=True))
    return Case(
        op, (sum(sources.values()), *SIZES[grower.rank]), grower.rank, len(sources), sources
    )


def two_targets(rng: Random) -> Case:
    """A bias that meets counted zeros: the two convolutions never become one."""
    grower = Grower(rng, rng.choice([1, 2, 3]))
    first, middle = grower.target(), rng.randint(1, 3)
    first = replace(first, outputs=middle)
    second = Spec(middle, rng.randint(1, 3), (Axis(3, 1, 1, 1, 1),) * grower.rank)
    biased = replace(grower.leaf(first), bias=grower.tensor(middle))
    op = sequence(
        add(biased, grower.grow(first, rng.randint(0, 2))),
        add(grower.leaf(second), grower.grow(second, rng.randint(0, 2))),
    )
    return Case(op, (first.inputs, *SIZES[grower.rank]), grower.rank, 2, {})


def scattered(rng: Random) -> Case:
    """Transposed convolutions of one grid, between pointwise ones."""
    grower = Grower(rng, rng.choice([1, 2, 3]))
    inputs, outputs = rng.randint(1, 4), rng.randint(1, 4)
    stride, kernel = rng.choice([1, 2]), rng.randint(2, 3)
    lo, hi = rng.randint(0, 1), rng.randint(-1, 1)
    branches: list[Operator] = []
    for _ in range(rng.randint(1, 3)):
        cut = rng.randint(0, 1) if branches else 0
        axis = (
            Axis(kernel - cut, stride, 1, lo - cut, hi) if cut else Axis(kernel, stride, 1, lo, hi)
        )
        branches.append(grower.scatter(inputs, outputs, (axis,) * grower.rank, grower.coin()))
    op = add(*branches)
    if rng.random() < 0.5:
        front = Spec(rng.randint(1, 4), inputs, points(grower.rank), "zeros", constant=False)
        inputs, op = front.inputs, sequence(grower.grow(front, rng.randint(0, 2)), op)
    if rng.random() < 0.5:
        back = Spec(outputs, rng.randint(1, 4), points(grower.rank))
        op = sequence(op, grower.grow(back, rng.randint(0, 2)))
    elif rng.random() < 0.5:
        op = sequence(op, grower.affine(outputs, constant=True), Pad(((0, -1),) * grower.rank))
    return Case(op, (inputs, *SIZES[grower.rank]), grower.rank, 1, {})


def flattened(rng: Random) -> Case:
    """Branches that are one convolution, beside a linear layer that reads the whole map."""
    grower = Grower(rng, rng.choice([1, 1, 2]))
    spec, size = grower.target(), SIZES[grower.rank]
    op = grower.grow(spec, rng.randint(1, 3))
    out = size_after(grower.leaf(spec), size)
    weight = grower.tensor(spec.outputs * prod(out), spec.inputs * prod(size))
    host = sequence(Flatten(size), Conv(weight), Unflatten(out))
    parts = [host, op] if rng.random() < 0.5 else [op, host]
    return Case(add(*parts), (spec.inputs, *size), grower.rank, 3, {})


def wild(rng: Random) -> Case:
    """Return a case of any operators at all: nobody knows what folds, but nothing may change."""
    maker = Wild(rng, rng.choice([1, 1, 1, 2, 2, 3]))
    shape = (rng.randint(1, 3), *WILD_SIZES[maker.rank])
    op, _ = maker.chain(shape, rng.randint(1, 2))
    return Case(op, shape, maker.rank, None, {})


Shape = tuple[int, ...]
MOST_CHANNELS = 8
WILD_SIZES = {1: (7,), 2: (4, 5), 3: (3, 4, 3)}


class Wild(Maker):
    """Random operators that only promise to fit the shape they are given."""

    def chain(self, shape: Shape, depth: int) -> tuple[Operator, Shape]:
        parts: list[Operator] = []
        for _ in range(self.rng.randint(1, 4)):
            joins = depth > 0 and self.rng.random() < 0.4
            op, shape = self.join(shape, depth - 1) if joins else self.one(shape)
            parts.append(op)
        return sequence(*parts), shape

    def join(self, shape: Shape, depth: int) -> tuple[Operator, Shape]:
        branches = [self.chain(shape, depth) for _ in range(self.rng.randint(2, 3))]
        if self.coin():
            branches.append((Identity(), shape))
        aim = self.rng.choice(branches)[1]
        if self.coin() and sum(got[0] for _, got in branches) <= MOST_CHANNELS:
            fitted = [sequence(op, self.fit(got, (got[0], *aim[1:]))) for op, got in branches]
            return Concat(tuple(fitted)), (sum(got[0] for _, got in branches), *aim[1:])
        return add(*(sequence(op, self.fit(got, aim)) for op, got in branches)), aim

    def fit(self, shape: Shape, aim: Shape) -> Operator:
        """Return crops, rings and a channel mix that take `shape` to `aim`."""
        amounts = []
        for size, wanted in zip(shape[1:], aim[1:], strict=True):
            lo = (wanted - size) // 2
            amounts.append((lo, wanted - size - lo))
        ring: Operator = Pad(tuple(amounts), value=self.rng.choice([0.0, 0.0, 1.5]))
        if not any(map(any, amounts)):
            ring = Identity()
        mix: Operator = (
            self.conv(shape[0], aim[0], points(self.rank)) if shape[0] != aim[0] else Identity()
        )
        return sequence(ring, mix) if self.coin() else sequence(mix, ring)

    def one(self, shape: Shape) -> tuple[Operator, Shape]:
        channels, spatial = shape[0], shape[1:]
        kind = self.rng.choice(
            ["conv", "conv", "conv", "affine", "pool", "pad", "select", "scatter", "zero"]
        )
        if kind == "affine":
            return self.affine(channels, constant=True), shape
        if kind == "zero":
            return self.rng.choice([Zero(), Identity(), Identity()]), shape
        if kind == "select":
            index = tuple(self.rng.choices(range(channels), k=self.rng.randint(1, 4)))
            return Select(index, channels), (len(index), *spatial)
        if kind == "pad":
            return self.ring(channels, spatial)
        if kind == "scatter" and max(spatial) < 8:
            axes = tuple(
                Axis(self.rng.randint(1, 3), self.rng.randint(1, 2), 1, 0, self.rng.randint(-1, 0))
                for _ in spatial
            )
            out = self.rng.randint(1, 3)
            sizes = tuple(a.transposed_size(n) for a, n in zip(axes, spatial, strict=True))
            return self.scatter(channels, out, axes, self.coin()), (out, *sizes)
        axes = tuple(self.window(size) for size in spatial)
        sizes = tuple(a.out_size(n) for a, n in zip(axes, spatial, strict=True))
        if kind == "pool":
            flat = tuple(replace(a, dilation=1, hi=a.hi - a.span + a.kernel) for a in axes)
            return AvgPool(flat, self.rng.choice([None, 3])), (channels, *sizes)
        out = self.rng.choice([channels, self.rng.randint(1, 4)])
        return self.conv(channels, out, axes, self.rng.choice(MODES)), (out, *sizes)

    def ring(self, channels: int, spatial: Shape) -> tuple[Operator, Shape]:
        low = -1 if min(spatial) > 2 else 0
        high = min(2, min(spatial) - 1)
        sign = self.rng.choice([0, low])
        amounts = tuple(
            (self.rng.randint(sign, high), self.rng.randint(sign, high)) for _ in spatial
        )
        mode = self.rng.choice(MODES)
        if mode == "circular" and any(a * b < 0 for a, b in amounts):
            mode = "replicate"
        value = self.rng.choice([0.0, 1.5]) if mode == "zeros" else 0.0
        sizes = tuple(n + lo + hi for n, (lo, hi) in zip(spatial, amounts, strict=True))
        return Pad(amounts, mode, value), (channels, *sizes)

    def window(self, size: int) -> Axis:
        """Return any window that fits, on the usual grid as often as not."""
        if self.coin():
            kernel = self.rng.choice([1, 3])
            if kernel == 1 or size > 1:
                return Axis(kernel, 1, 1, kernel // 2, kernel // 2)
        kernel, dilation = self.rng.randint(1, 3), self.rng.randint(1, 2)
        most = min(kernel, size - 1)
        lo, hi = self.rng.randint(0, most), self.rng.randint(0, most)
        kernel = kernel if size + lo + hi >= dilation * (kernel - 1) + 1 else 1
        return Axis(kernel, self.rng.choice([1, 1, 2]), dilation, lo, hi)
