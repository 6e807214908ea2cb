"""Trees that know how few leaves they fold to.

A tree is grown outwards from one target window. Every production keeps the condition under which
the whole is still one convolution, so its minimal number of leaves is known without asking a rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from helpers.strategies import MODES, Maker
from refold.algebra.geometry import Axes, Axis
from refold.algebra.operator import (
    AvgPool,
    Concat,
    Conv,
    Identity,
    Operator,
    Pad,
    Select,
    add,
    points,
    sequence,
)


@dataclass(frozen=True)
class Spec:
    """What a tree stays within: channels, a dilation-free window per axis, border, constants."""

    inputs: int
    outputs: int
    axes: Axes
    mode: str = "zeros"
    constant: bool = True

    @property
    def pads(self) -> bool:
        return any(axis.pads for axis in self.axes)

    @property
    def feeds(self) -> bool:
        """Whether a constant may come before it."""
        return self.constant and not (self.pads and self.mode == "zeros")


def is_torn(axis: Axis, mode: str) -> bool:
    """Whether a crop on one side changes what the ring on the other repeats."""
    return mode == "circular" and min(axis.lo, axis.hi) < 0 < max(axis.lo, axis.hi)


class Grower(Maker):
    """Grows trees that fold to one convolution."""

    def window(self) -> Axes:
        def one() -> Axis:
            kernel, stride = self.rng.choice([1, 2, 3, 3, 5]), self.rng.choice([1, 1, 2])
            lo, hi = self.rng.randint(-1, min(kernel, 2)), self.rng.randint(-1, min(kernel, 2))
            return Axis(kernel, stride, 1, lo, hi)

        if self.rank == 3:
            return tuple(replace(one(), kernel=self.rng.randint(1, 3)) for _ in range(3))
        return tuple(one() for _ in range(self.rank))

    def target(self) -> Spec:
        inputs, outputs = self.rng.randint(1, 4), self.rng.randint(1, 4)
        axes, mode = self.window(), self.rng.choice(MODES)
        if any(is_torn(axis, mode) for axis in axes):
            mode = "zeros"
        return Spec(inputs, self.rng.choice([inputs, outputs]), axes, mode)

    def leaf(self, spec: Spec) -> Conv:
        axes = []
        for axis in spec.axes:
            steps = [d for d in (1, 2, 4) if (axis.kernel - 1) % d == 0]
            dilation = self.rng.choice(steps)
            axes.append(replace(axis, kernel=(axis.kernel - 1) // dilation + 1, dilation=dilation))
        mode = spec.mode if spec.pads else self.rng.choice(MODES)
        return self.conv(spec.inputs, spec.outputs, tuple(axes), mode, spec.constant)

    def within(self, spec: Spec) -> Spec:
        """Return a smaller window on the same grid."""

        def one(axis: Axis) -> Axis:
            lo = self.rng.randint(0, axis.kernel - 1)
            hi = self.rng.randint(0, axis.kernel - 1 - lo)
            small = replace(axis, kernel=axis.kernel - lo - hi, lo=axis.lo - lo, hi=axis.hi - hi)
            crops = min(small.lo, small.hi) < 0
            return axis if crops and spec.mode == "circular" else small

        return replace(spec, axes=tuple(map(one, spec.axes)))

    def grow(self, spec: Spec, depth: int) -> Operator:
        """Return a random tree that is one convolution within `spec`."""
        if depth <= 0:
            return self.leaf(spec)
        return self.rng.choice(self.productions(spec))(spec, depth - 1)

    def productions(self, spec: Spec) -> list[Callable[[Spec, int], Operator]]:
        some = [
            self.branches,
            self.branches,
            self.scaled,
            self.split,
            self.mixed,
            self.chosen,
            self.laid,
        ]
        if self.rank and not (spec.pads and spec.mode != "zeros"):
            some += [self.cropped, self.pooled]
        if self.rank:
            some += [self.padded]
        if spec.mode != "circular":
            some += [self.shared]
        if spec.inputs > 1 and spec.outputs > 1:
            some += [self.sliced]
        return some

    def branches(self, spec: Spec, depth: int) -> Operator:
        parts = [self.grow(spec, depth)]
        for _ in range(self.rng.randint(1, 3)):
            parts.append(self.twig(spec) or self.grow(self.within(spec), depth - 1))
        if self.rng.random() < 0.1:
            parts.append(parts[0])  # one branch, used twice
        self.rng.shuffle(parts)
        return add(*parts)

    def shared(self, spec: Spec, depth: int) -> Operator:
        """A value that is read more than once, each time without a kernel of its own."""
        reach = [self.rng.randint(1, (a.kernel - 1) // a.stride + 1) for a in spec.axes]
        axes = zip(spec.axes, reach, strict=True)
        inner = tuple(replace(a, kernel=a.kernel - a.stride * (r - 1)) for a, r in axes)
        crops = [self.rng.randint(0, r - 1) for r in reach]
        crop = Pad(tuple((-c, c + 1 - r) for c, r in zip(crops, reach, strict=True)))
        twigs = [crop, AvgPool(tuple(map(Axis, reach)))] if self.rank else [Identity(), Identity()]
        twigs.append(sequence(twigs[0], self.affine(spec.outputs, spec.constant)))
        self.rng.shuffle(twigs)
        return sequence(self.grow(replace(spec, axes=inner), depth), add(*twigs))

    def twig(self, spec: Spec) -> Operator | None:
        """Return a branch without a convolution of its own, where channels and window allow one."""
        if spec.inputs != spec.outputs or self.rng.random() < 0.4:
            return None
        point = [a.stride == 1 and a.slack == -1 and 0 <= a.lo < a.kernel for a in spec.axes]
        scale = self.affine(spec.outputs, spec.constant)
        if all(point) and self.coin():
            return self.rng.choice(
                [Identity(), scale, sequence(scale, self.affine(spec.outputs, False))]
            )
        small = self.within(spec)
        if not self.rank or (small.pads and spec.mode != "zeros"):
            return None
        pool = AvgPool(small.axes, self.rng.choice([None, None, 5]))
        return self.rng.choice([pool, sequence(pool, scale)])

    def scaled(self, spec: Spec, depth: int) -> Operator:
        inner = self.grow(spec, depth)
        if self.coin():
            return sequence(inner, self.affine(spec.outputs, spec.constant))
        return sequence(self.affine(spec.inputs, spec.feeds), inner)

    def split(self, spec: Spec, depth: int) -> Operator:
        """A kernel as two: along each axis one pads, the other reads points or does not pad."""
        first, second = [], []
        for axis in spec.axes:
            if self.rng.random() < 0.3:
                first.append(Axis())
                second.append(axis)
                continue
            stride = self.rng.choice([s for s in (1, 2) if axis.stride % s == 0])
            outer = self.rng.randint(1, (axis.kernel - 1) // stride + 1)
            first.append(replace(axis, kernel=axis.kernel - stride * (outer - 1), stride=stride))
            second.append(Axis(outer, axis.stride // stride))
        middle = self.rng.randint(1, 4)
        two = replace(spec, inputs=middle, axes=tuple(second))
        one = replace(spec, outputs=middle, axes=tuple(first), constant=two.feeds)
        return sequence(self.grow(one, depth), self.grow(two, depth - 1))

    def mixed(self, spec: Spec, depth: int) -> Operator:
        """A pointwise convolution ahead of a window: constant-free where zeros are counted."""
        middle = self.rng.randint(1, 4)
        point = Spec(spec.inputs, middle, points(self.rank), "zeros", spec.feeds)
        return sequence(self.grow(point, depth - 1), self.grow(replace(spec, inputs=middle), depth))

    def chosen(self, spec: Spec, depth: int) -> Operator:
        if self.coin():
            wide = spec.outputs + self.rng.randint(0, 2)
            index = tuple(self.rng.sample(range(wide), spec.outputs))
            return sequence(self.grow(replace(spec, outputs=wide), depth), Select(index, wide))
        narrow = self.rng.randint(1, spec.inputs)
        index = tuple(self.rng.choices(range(spec.inputs), k=narrow))
        return sequence(Select(index, spec.inputs), self.grow(replace(spec, inputs=narrow), depth))

    def laid(self, spec: Spec, depth: int) -> Operator:
        """Branches side by side, alone or under a pointwise convolution that reads them all."""
        if spec.outputs > 1 and self.coin():
            first = self.rng.randint(1, spec.outputs - 1)
            sizes = (first, spec.outputs - first)
            return Concat(
                tuple(self.grow(replace(self.within(spec), outputs=n), depth - 1) for n in sizes)
            )
        sizes = tuple(self.rng.randint(1, 3) for _ in range(self.rng.randint(2, 3)))
        side = Concat(
            tuple(self.grow(replace(self.within(spec), outputs=n), depth - 1) for n in sizes)
        )
        point = Spec(sum(sizes), spec.outputs, points(self.rank), "zeros", spec.constant)
        return sequence(side, self.grow(point, depth - 1))

    def sliced(self, spec: Spec, depth: int) -> Operator:
        """Consecutive slices, each with a tree of its own."""
        pieces = self.rng.randint(2, min(spec.inputs, spec.outputs))
        cuts = [
            sorted(self.rng.sample(range(1, n), pieces - 1)) for n in (spec.inputs, spec.outputs)
        ]
        spans = [
            list(zip([0, *c], [*c, n], strict=True))
            for c, n in zip(cuts, (spec.inputs, spec.outputs), strict=True)
        ]
        parts = [
            sequence(
                Select(tuple(range(i, j)), spec.inputs),
                self.grow(replace(self.within(spec), inputs=j - i, outputs=n - m), depth - 1),
            )
            for (i, j), (m, n) in zip(*spans, strict=True)
        ]
        return Concat(tuple(parts))

    def cropped(self, spec: Spec, depth: int) -> Operator:
        """Outputs that are computed and cut off again."""
        amounts = [(-self.rng.randint(0, 1), -self.rng.randint(0, 1)) for _ in spec.axes]
        axes = tuple(
            replace(a, lo=a.lo - a.stride * lo, hi=a.hi - a.stride * hi)
            for a, (lo, hi) in zip(spec.axes, amounts, strict=True)
        )
        return sequence(
            self.grow(replace(spec, mode="zeros", axes=axes), depth), Pad(tuple(amounts))
        )

    def pooled(self, spec: Spec, depth: int) -> Operator:
        """A pool and a pointwise convolution, either first."""
        pool = AvgPool(spec.axes, self.rng.choice([None, None, 5]))
        point = Spec(spec.inputs, spec.outputs, points(self.rank), "zeros", spec.constant)
        if self.coin():
            return sequence(pool, self.grow(point, depth))
        return sequence(
            self.grow(replace(point, constant=spec.constant and not spec.pads), depth), pool
        )

    def padded(self, spec: Spec, depth: int) -> Operator:
        """Padding as an operator of its own, wholly or (zeros) in part."""
        parts = self.rng.randint(0, 1) if spec.mode == "zeros" else 1
        amounts = [
            tuple(max(n, 0) if parts or n <= 0 else self.rng.randint(0, n) for n in (a.lo, a.hi))
            for a in spec.axes
        ]
        axes = tuple(
            replace(a, lo=a.lo - lo, hi=a.hi - hi)
            for a, (lo, hi) in zip(spec.axes, amounts, strict=True)
        )
        inner = replace(spec, axes=axes)
        tree = self.leaf(inner) if spec.mode == "circular" else self.grow(inner, depth)
        return sequence(Pad(tuple(amounts), spec.mode), tree)
