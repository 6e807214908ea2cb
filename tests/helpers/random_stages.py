"""Stages of random networks: parts between nonlinearities that know how few operators they are.

Each is grown from the window it folds to (see `rules.grow`), then written down in random PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.random_joins import Dresser, DropPath, Inline
from helpers.random_scales import Step
from helpers.strategies import MODES, Case
from refold.algebra.geometry import Axis
from refold.algebra.operator import Operator, points
from rules.grow import Grower, Spec
from rules.trees import scattered, several_sources

SMALLEST = {1: 12, 2: 9, 3: 7}

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """A part of a network, the shape (C, *spatial) it gives, and its minimal operators."""

    module: nn.Module
    shape: Shape
    minimal: int
    name: str


class Residual(nn.Module):
    """A body beside a way around it."""

    def __init__(self, body: nn.Module, together: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.together = body, together
        self.drop_path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        return self.together(x, self.drop_path(self.body(x)))


class Several(nn.Module):
    """Values of one input, each behind a nonlinearity, that a tree joins again."""

    def __init__(self, stems: dict[str, nn.Module], tree: nn.Module) -> None:
        super().__init__()
        self.stems, self.tree = nn.ModuleDict(stems), tree

    def forward(self, x: Tensor) -> Tensor:
        return self.tree({key: stem(x) for key, stem in self.stems.items()})


class Pair(nn.Module):
    """A tree over the two inputs of a network."""

    def __init__(self, tree: nn.Module, rest: nn.Module) -> None:
        super().__init__()
        self.tree, self.rest = tree, rest

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.rest(self.tree({"a": x, "b": y}))


class Fan(nn.Module):
    """One norm that several branches read."""

    def __init__(self, norm: nn.Module, readers: list[nn.Module]) -> None:
        super().__init__()
        self.norm, self.readers = norm, nn.ModuleList(readers)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return torch.cat([reader(y) for reader in self.readers], 1)


class Ringed(nn.Module):
    """DBB's norm whose padding is its own answer to zero, as a norm of the padded map."""

    def __init__(self, norm: nn.Module, amount: int, rank: int) -> None:
        super().__init__()
        self.norm, self.flat = norm, [amount] * (2 * rank)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.pad(x, self.flat))


class Stages:
    """Draws stages for maps of one rank."""

    def __init__(self, rng: Random, rank: int) -> None:
        self.rng, self.rank = rng, rank
        self.kinds = [self.plain] * 4
        self.kinds += [self.residual, self.several, self.scatter, self.fan]
        self.kinds += [self.ring, self.tokens, self.alone, self.dense]

    def grower(self, rank: int | None = None) -> Grower:
        grower = Grower(self.rng, self.rank if rank is None else rank)
        grower.dtype = torch.float64
        return grower

    def dress(self, op: Operator, rank: int | None = None, *, tokens: bool = False) -> nn.Module:
        rank = self.rank if rank is None else rank
        return Dresser(self.rng, rank, tokens=tokens).dress(op)

    def point(self, inputs: int, outputs: int, depth: int) -> nn.Module:
        """Something that folds to one pointwise convolution."""
        return self.dress(self.grower().grow(Spec(inputs, outputs, points(self.rank)), depth))

    def bend(self) -> nn.Module:
        """A nonlinearity: module, function or method."""
        return self.bends(1)[0]

    def bends(self, count: int) -> list[nn.Module]:
        """Different nonlinearities: paths with one and the same may become one path."""
        layers = [nn.ReLU(), nn.SiLU(), nn.LeakyReLU(0.1), nn.Tanh(), nn.ReLU(inplace=True)]
        steps = [F.relu, torch.tanh, lambda x: x.sigmoid(), lambda x: x.clamp(min=-0.5)]
        return self.rng.sample([*layers, nn.Hardswish(), *(Step(step) for step in steps)], count)

    def spec(self, channels: int, spatial: Shape) -> Spec:
        spec = replace(self.grower().target(), inputs=channels, outputs=self.rng.randint(1, 4))
        after = [axis.out_size(n) for axis, n in zip(spec.axes, spatial, strict=True)]
        if min(after) >= SMALLEST[self.rank]:
            return spec
        return replace(spec, axes=tuple(replace(axis, stride=1) for axis in spec.axes))

    def same(self, channels: int) -> Spec:
        """A window that keeps every size."""
        kernels = [self.rng.choice([1, 3, 5]) for _ in range(self.rank)]
        axes = tuple(Axis(k, 1, 1, k // 2, k // 2) for k in kernels)
        return Spec(channels, channels, axes, self.rng.choice(MODES))

    def probed(self, module: nn.Module, shape: Shape, minimal: int, name: str) -> Stage:
        with torch.no_grad():
            out = module.eval()(torch.zeros(1, *shape, dtype=torch.float64))
        return Stage(module, tuple(out.shape[1:]), minimal, name)

    # -- kinds

    def plain(self, shape: Shape) -> Stage:
        spec = self.spec(shape[0], shape[1:])
        module = self.dress(self.grower().grow(spec, self.rng.randint(1, 4)))
        return self.probed(module, shape, 1, "plain")

    def residual(self, shape: Shape) -> Stage:
        parts = [self.dress(self.grower().grow(self.same(shape[0]), 2)) for _ in range(2)]
        ways = [torch.add, lambda a, b: b + a, lambda a, b: b.add_(a), lambda a, b: a - b]
        body = Inline(parts[0], self.bend(), parts[1])
        return Stage(Residual(body, self.rng.choice(ways)), shape, 2, "residual")

    def several(self, shape: Shape) -> Stage:
        case = self.several_sources()
        stems: dict[str, nn.Module] = {}
        bends = self.bends(len(case.sources))
        for (key, channels), bend in zip(case.sources.items(), bends, strict=True):
            first = self.point(shape[0], channels, self.rng.randint(0, 2))
            stems[str(key)] = Inline(first, bend)
        tree = Dresser(self.rng, self.rank).meet(case.op)
        return self.probed(Several(stems, tree), shape, 2 * len(stems), "several")

    def several_sources(self) -> Case:
        """A tree over several values that looks at all of them.

        What nobody looks at (its branch is cropped away) goes with all that made it: such a network
        has fewer operators than two for each value.
        """
        while True:
            case = of_rank(several_sources, self.rng, self.rank)
            start, looks = 0, []
            matrix, _ = case.dense(case.op)
            for channels in case.sources.values():
                end = start + channels * prod(case.shape[1:])
                looks.append(bool(matrix[start:end].any()))
                start = end
            if all(looks):
                return case

    def scatter(self, shape: Shape) -> Stage:
        case = of_rank(scattered, self.rng, self.rank)
        front = self.point(shape[0], case.shape[0], 1)
        return self.probed(Inline(front, self.bend(), self.dress(case.op)), shape, 2, "scatter")

    def fan(self, shape: Shape) -> Stage:
        grower = self.grower()
        norm = self.dress(grower.affine(shape[0], constant=True))
        readers: list[nn.Module] = []
        for bend in self.bends(self.rng.randint(2, 3)):
            spec = Spec(shape[0], self.rng.randint(1, 3), points(self.rank), "zeros")
            readers.append(Inline(self.dress(grower.leaf(spec)), bend))
        return self.probed(Fan(norm, readers), shape, len(readers), "fan")

    def ring(self, shape: Shape) -> Stage:
        grower, middle, amount = self.grower(), self.rng.randint(1, 4), self.rng.randint(1, 2)
        first = grower.leaf(Spec(shape[0], middle, points(self.rank), "zeros", constant=False))
        norm = self.dress(grower.affine(middle, constant=True))
        second = grower.leaf(Spec(middle, self.rng.randint(1, 3), (Axis(3),) * self.rank))
        parts = [self.dress(first), Ringed(norm, amount, self.rank), self.dress(second)]
        return self.probed(Inline(*parts), shape, 1, "ring")

    def tokens(self, shape: Shape) -> Stage:
        """Linear layers on channels that were moved last, behind a convolution."""
        middle = self.rng.randint(1, 4)
        window = replace(self.spec(shape[0], shape[1:]), outputs=middle)
        before = self.grower().grow(window, self.rng.randint(0, 2))
        linear = self.grower(0).grow(Spec(middle, self.rng.randint(1, 4), ()), 2)
        last, first = (0, *range(2, self.rank + 2), 1), (0, self.rank + 1, *range(1, self.rank + 1))
        parts = [self.dress(before), Step(lambda x: x.permute(last))]
        parts += [self.dress(linear, 0, tokens=True), Step(lambda x: torch.permute(x, first))]
        return self.probed(Inline(*parts), shape, 1, "tokens")

    def alone(self, shape: Shape) -> Stage:
        """A norm or a scale with nonlinearities on both sides."""
        affine = self.grower().affine(shape[0], constant=True)
        return Stage(self.dress(affine), shape, 1, "alone")

    def dense(self, shape: Shape) -> Stage:
        """DenseNet's growth: a value beside what was made of it, then a norm and a convolution."""
        grown = self.rng.randint(1, 3)
        body = Inline(self.point(shape[0], grown, 2), self.bend())
        total = shape[0] + grown
        norm = self.dress(self.grower().affine(total, constant=True))
        spec = Spec(total, self.rng.randint(1, 4), points(self.rank))
        joined = Residual(body, lambda a, b: torch.cat((a, b), 1))
        parts = [joined, norm, self.dress(self.grower().leaf(spec))]
        return self.probed(Inline(*parts), shape, 2, "dense")

    def head(self, shape: Shape) -> Stage:
        """A global mean, then linear layers and norms."""
        axes, start = tuple(range(2, self.rank + 2)), shape
        flat = self.rng.choice([nn.Flatten(), Step(lambda x: x.flatten(1))])
        pool = getattr(nn, f"AdaptiveAvgPool{self.rank}d")(1)
        kept, gone = Step(lambda x: x.mean(axes, True)), Step(lambda x: x.mean(axes))
        front: list[nn.Module] = list(self.rng.choice([[pool, flat], [kept, flat], [gone]]))
        if self.rng.random() < 0.3 and min(shape[1:]) >= SMALLEST[self.rank]:
            spec = self.spec(shape[0], shape[1:])
            front.insert(0, self.dress(self.grower().grow(spec, self.rng.randint(0, 2))))
            shape = (spec.outputs,)
        tree = self.grower(0).grow(Spec(shape[0], self.rng.randint(2, 5), ()), 3)
        return self.probed(Inline(*front, self.dress(tree, 0)), start, 1, "head")


def of_rank(make: Callable[[Random], Case], rng: Random, rank: int) -> Case:
    """Draw cases until one has this rank."""
    while (case := make(Random(rng.getrandbits(31)))).rank != rank:
        pass
    return case
