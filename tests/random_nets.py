"""Random branchy networks that know how few operators they fold to.

A network is a row of stages with a nonlinearity between any two, so that no fold reaches across. Each stage is grown from
the window it folds to (see `rules.grow`), then written down in random PyTorch. `python tests/random_nets.py --count
2000 --seed 0` folds that many, with progress, and names the seeds that fail.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

sys.path.append(str(Path(__file__).parents[1] / "src"))  # run as a script

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from random_count import count
from random_forms import Step, UnwritableError
from random_joins import Dresser, DropPath, Inline
from refold import reparameterize
from refold.algebra.geometry import Axis
from refold.algebra.operator import Conv, Operator, points, sequence
from rules.grow import Grower, Spec
from rules.trees import scattered, several_sources
from strategies import MODES, Case

SIZES = {1: (33,), 2: (17, 14), 3: (9, 8, 10)}
SMALLEST = {1: 12, 2: 9, 3: 7}
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Net:
    """A network, what it reads, and the operators it folds to."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    minimal: int
    story: str


@dataclass(frozen=True)
class Stage:
    """A part of a network: its module, the shape (C, *spatial) it gives and its minimal operators."""

    module: nn.Module
    shape: tuple[int, ...]
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
    """Values of the same input, each behind a nonlinearity, that a tree joins again."""

    def __init__(self, stems: dict[str, nn.Module], tree: nn.Module) -> None:
        super().__init__()
        self.stems, self.tree = nn.ModuleDict(stems), tree

    def forward(self, x: Tensor) -> Tensor:
        return self.tree({key: stem(x) for key, stem in self.stems.items()})


class Fan(nn.Module):
    """One norm that several branches read."""

    def __init__(self, norm: nn.Module, readers: list[nn.Module]) -> None:
        super().__init__()
        self.norm, self.readers = norm, nn.ModuleList(readers)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return torch.cat([reader(y) for reader in self.readers], 1)


class RingOfBias(nn.Module):
    """DBB's BNAndPad: a norm, and its answer to zero as padding."""

    def __init__(self, norm: nn.Module, amount: int, rank: int) -> None:
        super().__init__()
        self.norm, self.flat = norm, [amount] * (2 * rank)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.pad(x, self.flat))


class Builder:
    """Builds one network from a seed."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.rank = self.rng.choice([1, 1, 2, 2, 2, 3])

    # -- pieces ---------------------------------------------------------------------------------------------

    def grower(self, rank: int | None = None) -> Grower:
        grower = Grower(self.rng, self.rank if rank is None else rank)
        grower.dtype = torch.float64
        return grower

    def dress(self, op: Operator, rank: int | None = None, *, tokens: bool = False) -> nn.Module:
        return Dresser(self.rng, self.rank if rank is None else rank, tokens=tokens).dress(op)

    def bend(self) -> nn.Module:
        """A nonlinearity that only looks at its input."""
        return self.rng.choice(
            [
                nn.ReLU(), nn.SiLU(), nn.LeakyReLU(0.1), nn.Tanh(), nn.ReLU(inplace=True), nn.Hardswish(),
                Step(F.relu), Step(lambda x: x.sigmoid()), Step(torch.tanh), Step(lambda x: x.clamp(min=-0.5)),
            ]
        )  # fmt: skip

    def spec(self, channels: int, spatial: tuple[int, ...]) -> Spec:
        spec = replace(self.grower().target(), inputs=channels, outputs=self.rng.randint(1, 4))
        after = [axis.out_size(n) for axis, n in zip(spec.axes, spatial, strict=True)]
        small = min(after) < SMALLEST[self.rank]
        return replace(spec, axes=tuple(replace(a, stride=1) for a in spec.axes)) if small else spec

    def same(self, channels: int) -> Spec:
        """A window that keeps every size."""
        kernels = [self.rng.choice([1, 3, 5]) for _ in range(self.rank)]
        axes = tuple(Axis(k, 1, 1, k // 2, k // 2) for k in kernels)
        return Spec(channels, channels, axes, self.rng.choice(MODES))

    # -- stages ---------------------------------------------------------------------------------------------

    def plain(self, shape: tuple[int, ...]) -> Stage:
        spec = self.spec(shape[0], shape[1:])
        module = self.dress(self.grower().grow(spec, self.rng.randint(1, 4)))
        return Stage(module, (spec.outputs, *_after(spec, shape[1:])), 1, "plain")

    def residual(self, shape: tuple[int, ...]) -> Stage:
        first, second = (self.dress(self.grower().grow(self.same(shape[0]), 2)) for _ in range(2))
        together = self.rng.choice([torch.add, lambda a, b: b + a, lambda a, b: b.add_(a), lambda a, b: a - b])
        return Stage(Residual(Inline(first, self.bend(), second), together), shape, 2, "residual")

    def several(self, shape: tuple[int, ...]) -> Stage:
        case = _of_rank(several_sources, self.rng, self.rank)
        stems = {}
        for key, channels in case.sources.items():
            op = self.grower().grow(Spec(shape[0], channels, points(self.rank)), self.rng.randint(0, 2))
            stems[str(key)] = Inline(self.dress(op), self.bend())
        tree = Dresser(self.rng, self.rank).meet(case.op)
        return self.probed(Several(stems, tree), shape, 2 * len(stems), "several")

    def scatter(self, shape: tuple[int, ...]) -> Stage:
        case = _of_rank(scattered, self.rng, self.rank)
        front = self.dress(self.grower().grow(Spec(shape[0], case.shape[0], points(self.rank)), 1))
        return self.probed(Inline(front, self.bend(), self.dress(case.op)), shape, 2, "scatter")

    def fan(self, shape: tuple[int, ...]) -> Stage:
        grower = self.grower()
        norm = self.dress(grower.affine(shape[0], constant=True))
        readers: list[nn.Module] = []
        for _ in range(self.rng.randint(2, 3)):
            spec = Spec(shape[0], self.rng.randint(1, 3), points(self.rank), "zeros")
            readers.append(Inline(self.dress(grower.leaf(spec)), self.bend()))
        return self.probed(Fan(norm, readers), shape, len(readers), "fan")

    def ring(self, shape: tuple[int, ...]) -> Stage:
        grower, middle, amount = self.grower(), self.rng.randint(1, 4), self.rng.randint(1, 2)
        first = grower.leaf(Spec(shape[0], middle, points(self.rank), "zeros", constant=False))
        norm = self.dress(grower.affine(middle, constant=True))
        second = grower.leaf(Spec(middle, self.rng.randint(1, 3), (Axis(3),) * self.rank))
        parts = [self.dress(first), RingOfBias(norm, amount, self.rank), self.dress(second)]
        return self.probed(Inline(*parts), shape, 1, "ring")

    def tokens(self, shape: tuple[int, ...]) -> Stage:
        """Linear layers on channels that were moved last, between convolutions."""
        grower, middle = self.grower(), self.rng.randint(1, 4)
        spec = replace(self.spec(shape[0], shape[1:]), outputs=middle)
        before = self.dress(grower.leaf(spec))
        linear = self.dress(
            self.grower(0).grow(Spec(middle, self.rng.randint(1, 4), ()), 2), 0, tokens=True
        )
        last, first = (0, *range(2, self.rank + 2), 1), (0, self.rank + 1, *range(1, self.rank + 1))
        parts = [before, Step(lambda x: x.permute(last)), linear, Step(lambda x: torch.permute(x, first))]
        return self.probed(Inline(*parts), shape, 1, "tokens")

    def alone(self, shape: tuple[int, ...]) -> Stage:
        """A norm or a scale with nonlinearities on both sides."""
        return Stage(self.dress(self.grower().affine(shape[0], constant=True)), shape, 1, "alone")

    def probed(self, module: nn.Module, shape: tuple[int, ...], minimal: int, name: str) -> Stage:
        with torch.no_grad():
            out = module.eval()(torch.zeros(1, *shape, dtype=torch.float64))
        return Stage(module, tuple(out.shape[1:]), minimal, name)

    def head(self, shape: tuple[int, ...]) -> Stage:
        """A global mean, then linear layers and norms."""
        pools = getattr(nn, f"AdaptiveAvgPool{self.rank}d")(1)
        axes = tuple(range(2, self.rank + 2))
        flat = self.rng.choice([nn.Flatten(), Step(lambda x: x.flatten(1))])
        front = self.rng.choice([[pools, flat], [Step(lambda x: x.mean(axes))], [Step(lambda x: x.mean(axes, True)), flat]])
        tree = self.grower(0).grow(Spec(shape[0], self.rng.randint(2, 5), ()), 3)
        return self.probed(Inline(*front, self.dress(tree, 0)), shape, 1, "head")

    # -- networks -------------------------------------------------------------------------------------------

    def build(self) -> Net:
        shape = (self.rng.randint(1, 4), *SIZES[self.rank])
        start, stages, bends = shape, list[Stage](), list[nn.Module]()
        for _ in range(self.rng.randint(1, 4)):
            stages.append(self.stage(shape))
            bends.append(self.bend())
            shape = stages[-1].shape
            if min(shape[1:]) < SMALLEST[self.rank]:
                break
        parts = [part for stage, bend in zip(stages, bends, strict=True) for part in (stage.module, bend)]
        if self.rng.random() < 0.4:
            stages.append(self.head(shape))
            parts.append(stages[-1].module)
        noise = torch.Generator().manual_seed(self.rng.getrandbits(31))
        x = torch.randn(2, *start, generator=noise, dtype=torch.float64)
        story = f"{self.rank}-D: " + ", ".join(stage.name for stage in stages)
        wrap = self.rng.choice([Inline, nn.Sequential])
        return Net(wrap(*parts).double().eval(), (x,), sum(stage.minimal for stage in stages), story)

    def stage(self, shape: tuple[int, ...]) -> Stage:
        kinds = [self.plain] * 4 + [self.residual, self.several, self.scatter, self.fan, self.ring, self.tokens, self.alone]
        while True:
            try:
                return self.rng.choice(kinds)(shape)
            except UnwritableError:
                continue


def _of_rank(make: Callable[[Random], Case], rng: Random, rank: int) -> Case:
    """Draw cases until one has this rank."""
    while (case := make(Random(rng.getrandbits(31)))).rank != rank:
        pass
    return case


def _after(spec: Spec, spatial: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axis.out_size(n) for axis, n in zip(spec.axes, spatial, strict=True))


def build(seed: int) -> Net:
    """Return the network of a seed."""
    return Builder(seed).build()


def fault(net: Net) -> str | None:
    """Fold a network; return what is wrong with the result, None when nothing is."""
    folded = reparameterize(net.model, net.inputs, allow_growth=True)
    with torch.no_grad():
        wanted, got = net.model(*net.inputs), folded(*net.inputs)
    if wanted.shape != got.shape:
        return f"shape {tuple(got.shape)}, wanted {tuple(wanted.shape)}"
    error = float((got - wanted).abs().max() / wanted.abs().max().clamp(min=1e-300))
    if not error <= TOLERANCE:
        return f"error {error:.2e}"
    found = count(folded, net.inputs)
    return None if found == net.minimal else f"{found} operators, minimal {net.minimal}"


def main() -> int:
    """Fold many networks and name the seeds that fail."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    failed, start = list[int](), time.perf_counter()
    for seed in range(asked.seed, asked.seed + asked.count):
        net = build(seed)
        try:
            wrong = fault(net)
        except Exception as error:  # a crash is one more finding
            wrong = f"{type(error).__name__}: {error}"
        if wrong is not None:
            failed.append(seed)
            sys.stdout.write(f"seed {seed} ({net.story}): {wrong}\n")
        done = seed - asked.seed + 1
        if done % 50 == 0 or done == asked.count:
            spent = time.perf_counter() - start
            sys.stdout.write(f"{done}/{asked.count} nets, {len(failed)} failed, {spent:.0f} s\n")
            sys.stdout.flush()
    sys.stdout.write(f"failing seeds: {failed or 'none'}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
