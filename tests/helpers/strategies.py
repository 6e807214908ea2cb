"""Random leaves, and how two operators are compared: shared by the tests of algebra and rules."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from refold.algebra.apply import apply
from refold.algebra.dense import to_dense
from refold.algebra.geometry import Axes
from refold.algebra.norm import norm_affine
from refold.algebra.operator import Affine, Concat, Conv, Input, Operator, Select, Sequence, Sum

SIZES = {0: (), 1: (9,), 2: (8, 7), 3: (5, 6, 5)}
MODES = ("zeros", "reflect", "replicate", "circular")


def matrix_of(op: Operator, shape: tuple[int, ...], rank: int) -> tuple[Tensor, Tensor]:
    """Return matrix and offset in float64: torch's own layers, run on every impulse at once."""
    size = torch.Size(shape).numel()
    basis = torch.cat([torch.zeros(1, size), torch.eye(size)]).to(torch.float64)
    out = apply(op, basis.reshape(-1, *shape), rank).flatten(1)
    return out[1:] - out[:1], out[0]


def oracle(op: Operator, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return matrix and offset of the dense oracle, laid out as `matrix_of` lays them."""
    dense = to_dense(op, shape)
    return dense.matrix.T, dense.offset


def gap(before: tuple[Tensor, ...], after: tuple[Tensor, ...]) -> float:
    """Return max|difference| / max|reference|; infinite where shapes differ."""
    if any(a.shape != b.shape for a, b in zip(before, after, strict=True)):
        return float("inf")
    scale = max(float(t.abs().max()) for t in before if t.numel()) or 1.0
    pairs = zip(before, after, strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs if a.numel()) / scale


def bind(op: Operator, channels: dict[object, int]) -> Operator:
    """Return `op` with every input replaced by its own slice of one stacked value."""
    if isinstance(op, Input):
        start = sum(list(channels.values())[: list(channels).index(op.key)])
        return Select(tuple(range(start, start + channels[op.key])), sum(channels.values()))
    if isinstance(op, (Sequence, Sum, Concat)):
        return type(op)(tuple(bind(part, channels) for part in op.parts))
    return op


@dataclass(frozen=True)
class Case:
    """An operator, the stacked map it reads, and the fewest leaves it folds to (None: unknown)."""

    op: Operator
    shape: tuple[int, ...]
    rank: int
    minimal: int | None
    sources: dict[object, int]

    def dense(self, op: Operator) -> tuple[Tensor, Tensor]:
        """Return the matrix and offset of this case's operator, or of what it was folded to."""
        return matrix_of(bind(op, self.sources) if self.sources else op, self.shape, self.rank)


class Maker:
    """Random tensors, windows and leaves of one rank and dtype."""

    def __init__(self, rng: Random, rank: int | None = None) -> None:
        self.rng = rng
        self.rank = rng.choice([0, 1, 1, 2, 2, 3]) if rank is None else rank
        self.dtype = rng.choice([torch.float32, torch.float64])
        self.noise = torch.Generator().manual_seed(rng.getrandbits(31))

    def tensor(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.noise, dtype=torch.float64).to(self.dtype)

    def coin(self) -> bool:
        return self.rng.random() < 0.5

    def affine(self, channels: int, constant: bool) -> Affine:
        """A norm, a scale, a shift or a factor; without a shift unless constants are allowed."""
        kind = self.rng.choice(
            ["norm", "scale", "shift", "factor"] if constant else ["scale", "factor"]
        )
        if kind == "norm":
            mean, var, bias = (
                self.tensor(channels),
                self.tensor(channels) ** 2 + 0.3,
                self.tensor(channels),
            )
            return norm_affine(mean, var, self.tensor(channels), bias, 1e-5)
        if kind == "shift":
            return Affine(None, self.tensor(channels))
        return Affine(self.tensor(channels) if kind == "scale" else self.tensor())

    def conv(
        self, inputs: int, outputs: int, axes: Axes, mode: str = "zeros", bias: bool = True
    ) -> Conv:
        shared = [g for g in range(1, 5) if inputs % g == 0 and outputs % g == 0]
        groups = self.rng.choice(shared)
        weight = self.tensor(outputs, inputs // groups, *(axis.kernel for axis in axes))
        return Conv(
            weight, self.tensor(outputs) if bias and self.coin() else None, axes, groups, mode
        )

    def scatter(self, inputs: int, outputs: int, axes: Axes, bias: bool = True) -> Conv:
        groups = self.rng.choice([g for g in range(1, 5) if inputs % g == 0 and outputs % g == 0])
        weight = self.tensor(inputs, outputs // groups, *(axis.kernel for axis in axes))
        return Conv(weight, self.tensor(outputs) if bias else None, axes, groups, transposed=True)
