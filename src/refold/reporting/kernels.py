"""The kernels of a fold as pictures: one for each branch, which add up to the kernel that stays.

The branches are taken from the network as it was, each by itself, and computed in float64; the
layer that stays has its own weight. So the sum of the pictures is a check, not a copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx

from refold.algebra.operator import (
    Concat,
    Conv,
    Identity,
    Input,
    Operator,
    Sequence,
    Sum,
    chain,
    leaves,
    linear_part,
    made_of,
    sequence,
)
from refold.engine.decisions import Decisions
from refold.errors import RefoldError
from refold.graph import Capture, Lifter, Regions, undisturbed
from refold.rules.parallel import branches_as_convs, common_axes, summands, taps_within
from refold.rules.weights import add_blocks, turned

Nodes = set[fx.Node]


@dataclass(frozen=True, eq=False)
class Branch:
    """One branch of a fold.

    Args:
        nodes: the layers that it runs through.
        tiles: the part of its kernel that a picture shows, in the form of the layer that stays.
        norm: the root of the sum of the squares of its whole kernel.
    """

    nodes: list[fx.Node]
    tiles: Tensor
    norm: float


@dataclass(frozen=True, eq=False)
class Split:
    """A kernel as the sum of its branches.

    Args:
        branches: in the order of the network.
        error: the largest difference between their sum and the kernel, over its largest number.
    """

    branches: list[Branch]
    error: float


class Branches:
    """Finds the branches of the folds in one recording of a network.

    Args:
        capture: of the network before.
    """

    def __init__(self, capture: Capture) -> None:
        self._order = {node: number for number, node in enumerate(capture.graph.nodes)}
        self._decisions = Decisions(allow_growth=True)
        self._op_of: dict[fx.Node, Operator] = {}
        with undisturbed():
            for region in Regions(Lifter.of(capture)).largest():
                self._op_of.update(dict.fromkeys(_nodes(region.op), region.op))

    def split(self, members: list[fx.Node], weight: Tensor, shown: Window) -> Split | None:
        """Return the branches that became one layer; None where they are not sums of kernels.

        Args:
            members: the layers that went into it.
            weight: the layer's kernel.
            shown: which part of it a picture shows.
        """
        ops = {self._op_of.get(node) for node in members}
        op = next(iter(ops)) if len(ops) == 1 else None
        if op is None:
            return None
        parts, source = _branches(op, set(members)), _source(op)
        named = [part for part in parts if leaves(part)]
        for chosen in (parts, named) if len(named) < len(parts) else (parts,):
            try:
                with undisturbed(), torch.no_grad():
                    found = self._split(chosen, source, weight, shown)
            except (RefoldError, ValueError, RuntimeError):  # no one kernel
                continue
            if found.error < _CLOSE:
                return found
        return None

    def _split(
        self, parts: list[Operator], source: Input | None, weight: Tensor, shown: Window
    ) -> Split:
        convs = branches_as_convs([self._reduced(part) for part in parts], source)
        rest, branches = weight.to(torch.float64, copy=True), list[Branch]()
        for part, kernel in zip(parts, _placed(convs), strict=True):
            rest -= kernel
            nodes = sorted(_nodes(part), key=self._order.__getitem__)
            branches.append(Branch(nodes, shown.cut(kernel), float(kernel.norm())))
        peak = float(weight.abs().max()) or 1.0
        return Split(branches, float(rest.abs().max()) / peak)

    def _reduced(self, op: Operator) -> tuple[Operator, ...]:
        shadow, replay = self._decisions.stand_in(linear_part(op))
        reduced = replay.run(self._decisions.rewrite(shadow))
        parts = tuple(part for part in chain(reduced) if not isinstance(part, Input))
        return parts or (Identity(),)


_CLOSE = 1e-2  # what one rounding to bfloat16 may cost; else the layer is something else


def _nodes(op: Operator) -> Nodes:
    return cast("Nodes", set(made_of(op)))


def _source(op: Operator) -> Input | None:
    first = chain(op)[0]
    if isinstance(first, Sum):
        return _source(first.parts[0])
    return first if isinstance(first, Input) else None


def _branches(op: Operator, members: Nodes) -> list[Operator]:
    """Return the branches of an expression that some layers form, each from its input on."""
    if isinstance(op, Sum):
        inside = [part for part in summands(op) if _nodes(part) & members or not leaves(part)]
        if sum(bool(leaves(part)) for part in inside) == 1:
            [inner] = [part for part in inside if leaves(part)]
            rest = {node for part in summands(op) for node in _nodes(part)} - members
            if rest:  # a shortcut around them, which stays
                return _branches(inner, members)
        return [branch for part in inside for branch in _branches(part, members)]
    parts = [part for part in chain(op) if _nodes(part) & members]
    if len(parts) == 1 and isinstance(parts[0], (Sum, Concat)):
        whole = parts[0]
        if isinstance(whole, Sum):
            return _branches(whole, members)
        inner = [part for part in whole.parts if _nodes(part) & members]
        return _branches(inner[0], members) if len(inner) == 1 else [whole]
    spread = [part for part in parts if isinstance(part, Sum)]
    if len(spread) != 1:
        return [sequence(*parts) if parts else op]
    at = parts.index(spread[0])
    return [
        Sequence((*parts[:at], *chain(branch), *parts[at + 1 :]))
        for branch in _branches(spread[0], members)
    ]


def _placed(convs: list[Conv]) -> Iterator[Tensor]:
    """Yield the kernels of convolutions in the window and the groups of their sum."""
    transposed = any(conv.transposed and not conv.is_pointwise for conv in convs)
    convs = [turned(conv, transposed) for conv in convs]
    axes, _ = common_axes(convs, transposed)
    groups = min(conv.groups for conv in convs)
    if any(conv.groups % groups for conv in convs):
        raise ValueError("groups that are not multiples of each other")
    kernel = tuple(axis.kernel for axis in axes)
    for conv in convs:
        rows, columns = conv.weight.shape[0], conv.weight.shape[1] * conv.groups // groups
        whole = torch.zeros(rows, columns, *kernel, dtype=torch.float64, device=conv.weight.device)
        part = conv.weight.to(torch.float64)
        add_blocks(whole[taps_within(conv.axes, axes)], part, conv.groups, groups)
        yield whole


@dataclass(frozen=True)
class Window:
    """Which part of a kernel a picture shows: the first channels, where an identity shows, too.

    Args:
        rows: output channels.
        columns: input channels of each.
        taps: height and width of the kernel; depth counts as height.
    """

    rows: int
    columns: int
    taps: tuple[int, int]

    @classmethod
    def of(cls, weight: Tensor, budget: int) -> Window:
        """Return the part of a kernel that fits a budget of numbers.

        Args:
            weight: the kernel, (outputs, inputs, *window).
            budget: how many numbers the picture may hold.

        Examples:
            >>> Window.of(torch.zeros(64, 64, 3, 3), 400)
            Window(rows=6, columns=6, taps=(3, 3))
        """
        taps = weight.shape[2:]
        size = max(1, taps.numel())
        rows, columns = weight.shape[:2]
        side = max(1, int((budget / size) ** 0.5))
        high = taps[:-1].numel() if taps else 1
        shape = high, taps[-1] if taps else 1
        if columns == 1:
            return cls(min(rows, side * side), 1, shape)
        return cls(min(rows, side), min(columns, side), shape)

    @property
    def pixels(self) -> int:
        """How many numbers the picture holds."""
        return self.rows * self.columns * self.taps[0] * self.taps[1]

    def cut(self, weight: Tensor) -> Tensor:
        """Return the numbers of the picture, (rows, columns, height, width)."""
        part = weight[: self.rows, : self.columns].double().cpu()
        return part.reshape(self.rows, self.columns, *self.taps).clone()
