"""Random containers: chains, sums and concatenations of branches, as forwards write them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import torch
from torch import Tensor, nn

from helpers.random_forms import Writer
from refold.algebra.operator import (
    Affine,
    AvgPool,
    Concat,
    Conv,
    Identity,
    Input,
    Operator,
    Pad,
    Select,
    Sequence,
    Sum,
    chain,
)

Values = dict[object, Tensor]


class DropPath(nn.Module):
    """Stochastic depth as timm writes it: nothing in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (torch.rand(x.shape[0], *(1,) * (x.ndim - 1)) > 0.5)


class Inline(nn.Module):
    """A chain that its forward spells out, with a local name for every value."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.count = len(parts)
        for i, part in enumerate(parts):
            self.add_module(f"part{i}", part)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(self.count):
            x = getattr(self, f"part{i}")(x)
        return x


class Named(nn.Module):
    """A chain in a ModuleDict."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({f"step_{i}": part for i, part in enumerate(parts)})

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts.values():
            x = part(x)
        return x


class Join(nn.Module):
    """Branches in a ModuleList, and how their values come together."""

    def __init__(self, parts: list[nn.Module], together: Callable[[list[Tensor]], Tensor]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(parts)
        self.together = together

    def forward(self, x: Tensor) -> Tensor:
        return self.together([branch(x) for branch in self.branches])


class Split(nn.Module):
    """Branches that each get their slice of the channels."""

    def __init__(
        self, parts: list[nn.Module], cut: Callable[[Tensor], tuple[Tensor, ...]], dim: int
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(parts)
        self.cut, self.dim = cut, dim

    def forward(self, x: Tensor) -> Tensor:
        pieces = self.cut(x)
        done = [branch(piece) for branch, piece in zip(self.branches, pieces, strict=True)]
        return torch.cat(done, dim=self.dim)


class Meet(nn.Module):
    """Branches from several values."""

    def __init__(
        self, parts: list[tuple[object, nn.Module]], together: Callable[[list[Tensor]], Tensor]
    ) -> None:
        super().__init__()
        self.keys = [key for key, _ in parts]
        self.branches = nn.ModuleList([part for _, part in parts])
        self.together = together

    def forward(self, values: Values) -> Tensor:
        pairs = zip(self.branches, self.keys, strict=True)
        return self.together([branch(values[key]) for branch, key in pairs])


def _added_in_place(values: list[Tensor]) -> Tensor:
    total = values[0] + values[1]
    for value in values[2:]:
        total += value
    return total


def _added_by_method(values: list[Tensor]) -> Tensor:
    total = values[0].add(values[1])
    for value in values[2:]:
        total = total.add_(value)
    return total


def _subtracted(values: list[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total - value
    return total


def _weighted(values: list[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = torch.add(total, value, alpha=-0.75)
    return total


def _folded_right(values: list[Tensor]) -> Tensor:
    total = values[-1]
    for value in values[-2::-1]:
        total = value + total
    return total


ADDITIONS = (sum, _added_in_place, _added_by_method, _subtracted, _weighted, _folded_right)


class Dresser:
    """Writes whole operator trees as modules."""

    def __init__(self, rng: Random, rank: int, *, tokens: bool = False) -> None:
        self.rng, self.rank = rng, rank
        self.writer = Writer(rng, rank, tokens=tokens)

    def dress(self, op: Operator) -> nn.Module:
        if isinstance(op, Sequence):
            return self.chain([self.dress(part) for part in op.parts])
        if isinstance(op, Sum):
            return Join([self.dress(part) for part in op.parts], self.rng.choice(ADDITIONS))
        if isinstance(op, Concat):
            return self.split(op) or Join([self.dress(part) for part in op.parts], self.beside())
        leaf = self.leaf(op)
        return self.chain([leaf]) if self.rng.random() < 0.15 else leaf

    def chain(self, parts: list[nn.Module]) -> nn.Module:
        """Nothing-ops strewn in, and any container around."""
        strewn: list[nn.Module] = []
        for part in parts:
            strewn.append(part)
            if self.rng.random() < 0.1:
                strewn.append(self.rng.choice([nn.Identity(), nn.Dropout(0.3), DropPath()]))
        return self.rng.choice([nn.Sequential, Inline, Named])(*strewn)

    def leaf(self, op: Operator) -> nn.Module:
        if isinstance(op, Affine):
            return self.writer.affine(op)
        if isinstance(op, Conv):
            return self.writer.conv(op)
        if isinstance(op, AvgPool):
            return self.writer.pool(op)
        if isinstance(op, Select):
            return self.writer.select(op)
        if isinstance(op, Pad):
            return nn.Sequential(*self.writer.pads(op))
        assert isinstance(op, Identity)
        return self.rng.choice([nn.Identity(), nn.Sequential(), nn.Dropout(0.2)])

    def beside(self) -> Callable[[list[Tensor]], Tensor]:
        dim = self.rng.choice([-1 - self.rank, 1]) if self.rank else -1
        call = self.rng.choice([torch.cat, torch.concat])
        return lambda values: call(values, dim=dim)

    def split(self, op: Concat) -> nn.Module | None:
        """Consecutive slices as one `chunk` or `split`."""
        heads = [chain(part)[0] for part in op.parts]
        picks = [head for head in heads if isinstance(head, Select)]
        read = [i for pick in picks for i in pick.index]
        whole = len(picks) == len(heads) and read == list(range(picks[0].channels))
        if not whole or self.rng.random() < 0.3:
            return None
        dim, sizes = -1 - self.rank, [len(pick.index) for pick in picks]
        rest = [self.dress(Sequence(chain(part)[1:])) for part in op.parts]
        cuts = [lambda x: torch.split(x, sizes, dim), lambda x: x.split(sizes, dim=dim)]
        if len(set(sizes)) == 1:
            count = len(sizes)
            cuts += [lambda x: x.chunk(count, dim), lambda x: torch.chunk(x, count, dim=dim)]
        return Split(rest, self.rng.choice(cuts), dim)

    def meet(self, op: Operator) -> nn.Module:
        """A tree over several values, as a module over a dict of them."""
        rest = chain(op)
        assert isinstance(rest[0], (Sum, Concat))
        parts = []
        for branch in rest[0].parts:
            source, *steps = chain(branch)
            assert isinstance(source, Input)
            parts.append((source.key, self.dress(Sequence(tuple(steps)))))
        joins = isinstance(rest[0], Concat)
        together = self.beside() if joins else self.rng.choice(ADDITIONS)
        return Inline(Meet(parts, together), *(self.dress(part) for part in rest[1:]))
