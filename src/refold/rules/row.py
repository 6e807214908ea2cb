"""Convolutions beside a linear layer that reads the whole map: parts of its matrix."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import torch

from refold.algebra.operator import (
    Conv,
    Flatten,
    Identity,
    Input,
    Operator,
    Sum,
    chain,
    sequence,
)
from refold.algebra.row import Reshaped, Unflatten, as_matrix, size_after
from refold.errors import GeometryError
from refold.rules.parallel import add_convs
from refold.rules.rule import Outcome, rule
from refold.rules.series import chain_as_conv
from refold.rules.weights import with_rank

Size = tuple[int, ...]
_Parts = tuple[Operator, ...]


@rule(
    "parallel",
    exact="maps of one known size",
    source="RepMLP, arXiv:2105.01883, section 3.3; for any channels: docs/arithmetic.md",
)
def add_to_matrix(op: Operator) -> Outcome:
    """Convolutions, identities and scales beside a linear layer on the flattened map are in it."""
    if not isinstance(op, Sum):
        return None
    branches = [chain(part) for part in op.parts]
    hosts = [host for host in map(host_of, branches) if host is not None]
    sources = {b[0].key if isinstance(b[0], Input) else None for b in branches}
    if not hosts or len(sources) > 1:
        return None
    host = max(hosts, key=lambda host: host.conv.weight.numel())
    rows = [_as_row(branch, host) for branch in branches if branch is not host.parts]
    shape = len(host.conv.axes)
    return host.around(add_convs([host.conv, *(with_rank(row, shape) for row in rows)]))


@dataclass(frozen=True, eq=False)
class Host:
    """A branch that is one linear layer on the flattened map, laid out as a map again or not.

    Args:
        parts: the branch.
        at: where the linear layer stands in it.
        conv: the layer.
        size: of the map that is flattened.
    """

    parts: _Parts
    at: int
    conv: Conv
    size: Size

    @property
    def channels(self) -> int:
        """Channels of the map it reads."""
        return self.conv.in_channels // prod(self.size)

    @property
    def end(self) -> Size:
        """Size of what it gives; one position where that stays a row."""
        whole: Size = ()
        for part in self.parts[self.at + 1 :]:
            whole = part.size if isinstance(part, Unflatten) else whole
        return whole

    def around(self, conv: Conv) -> Operator:
        """Return the branch with another layer in the place of its own."""
        return sequence(*self.parts[: self.at], conv, *self.parts[self.at + 1 :])


def host_of(branch: _Parts) -> Host | None:
    """Return a branch as a host, None when it is none."""
    rest = without_source(branch)
    places = [i for i, part in enumerate(branch) if isinstance(part, Conv)]
    if len(places) != 1 or not rest or not isinstance(rest[0], Flatten):
        return None
    conv, others = branch[places[0]], rest[1:]
    layouts = (Conv, Flatten, Unflatten, Reshaped)
    if not isinstance(conv, Conv) or not conv.is_pointwise or conv.transposed:
        return None
    fits = all(isinstance(part, layouts) for part in others)
    return Host(branch, places[0], conv, rest[0].size) if fits else None


def without_source(branch: _Parts) -> _Parts:
    """Return a branch from its first leaf on."""
    return branch[1:] if isinstance(branch[0], Input) else branch


def _as_row(branch: _Parts, host: Host) -> Conv:
    """Return a branch as one linear layer on the flattened map.

    Raises:
        GeometryError: when it is not one, or does not end as the host does.
    """
    walk = _Walk(host.size, host.channels, host.conv.weight.device)
    for part in without_source(branch):
        walk.take(part)
    walk.flush()
    if walk.size != host.end and prod((*walk.size, *host.end)) != 1:
        raise GeometryError(
            f"a branch gives maps of {walk.size} where the linear layer gives {host.end}"
        )
    assert walk.whole is not None
    return walk.whole


@dataclass
class _Walk:
    """A branch, followed from a map of one size on: what it is so far, as a matrix."""

    size: Size
    channels: int
    device: torch.device
    whole: Conv | None = None
    pending: list[Operator] = field(default_factory=list[Operator])

    def take(self, part: Operator) -> None:
        """Follow one leaf."""
        if isinstance(part, (Flatten, Unflatten, Reshaped)):
            self.flush()
            self._relay(part)
        else:
            self.pending.append(part)

    def flush(self) -> None:
        """Multiply the convolutions since the last change of layout onto the matrix."""
        parts = tuple(self.pending) or (Identity(),)
        if self.pending or self.whole is None:
            conv = chain_as_conv(parts, self.channels, len(self.size), self.device)
            matrix = as_matrix(conv, self.size, torch.float64)
            first = () if self.whole is None else (self.whole,)
            self.whole = chain_as_conv((*first, matrix), None, 0, self.device)
            self.size, self.channels = size_after(conv, self.size), conv.out_channels
        self.pending = []

    def _relay(self, part: Flatten | Unflatten | Reshaped) -> None:
        wanted = part.size if isinstance(part, Flatten) else (1,) * len(self.size)
        if self.size != wanted:
            raise GeometryError(f"maps of {self.size} change their layout on the way")
        if isinstance(part, Unflatten):
            self.size, self.channels = part.size, self.channels // prod(part.size)
        else:
            self.size, self.channels = (1,) * part.rank, self.channels * prod(self.size)
