"""Residuals by dataflow: a sum whose two sides come from one value, each along a plain chain."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from refold.algebra.operator import Affine, AvgPool, Conv, Identity, Operator
from refold.errors import RefusedError
from refold.graph import Lifter, Link, Piece, canonical, link


@dataclass(frozen=True, eq=False)
class Residual:
    """A sum of a branch and a shortcut.

    Args:
        total: the node that adds.
        source: the value that both sides start from.
        branch: the nonlinear side, in order.
        shortcut: the affine side, in order.
        scales: factors of branch and shortcut in the sum.
    """

    total: fx.Node
    source: fx.Node
    branch: tuple[Link, ...]
    shortcut: tuple[Link, ...]
    scales: tuple[Operator, Operator]

    @property
    def windows(self) -> tuple[int, ...]:
        """Return the sizes that the shortcut needs the map's sides to divide by."""
        return next((link.windows for link in self.shortcut if link.windows), ())


def is_sum(lifter: Lifter, node: fx.Node) -> bool:
    """Say whether a node adds two values that both depend on the input."""
    piece = lifter.lift(node)
    if isinstance(piece, Piece):
        return piece.join == "sum"
    call = canonical(node)
    if call is None or call.name not in ("add", "sub"):
        return False
    return lifter.depends(call["input"]) and lifter.depends(call["other"])


def find_residual(lifter: Lifter, node: fx.Node) -> Residual:
    """Return the residual that ends in a sum.

    Raises:
        RefusedError: when it is none, or one of a kind that has no plain form; the reason says why.
    """
    piece = lifter.lift(node)
    if isinstance(piece, str):
        raise RefusedError(piece)
    if piece is None:
        raise RefusedError("it adds values of different shapes")
    if len(piece.sources) != 2 or piece.through:
        raise RefusedError("it adds more than two values")
    shapes = {lifter.shape(value) for value in (node, *piece.sources)}
    if len(shapes) != 1 or None in shapes:
        raise RefusedError("it adds values of different shapes")
    return _residual(lifter, node, piece, _trails(lifter, piece.sources))


@dataclass(frozen=True, eq=False)
class _Trail:
    """The steps that lead to a value, the last first, and why they go no further back."""

    end: fx.Node
    links: tuple[Link, ...]
    reason: str | None

    def values(self) -> list[fx.Node]:
        return [self.end, *(link.source for link in self.links)]


def _residual(lifter: Lifter, node: fx.Node, piece: Piece, sides: list[_Trail]) -> Residual:
    first, second = (side.values() for side in sides)
    seen = set(second)
    source = next((value for value in first if value in seen), None)
    if source is None:
        raise RefusedError(next(filter(None, (side.reason for side in sides)), _APART))
    paths = [tuple(reversed(side.links[: side.values().index(source)])) for side in sides]
    straight = [all(link.is_affine for link in path) for path in paths]
    if not any(straight):
        raise RefusedError(_why_bent(paths))
    at = straight.index(True)
    if all(straight):  # a sum of branches that is not worth merging: the shorter one rides along
        at = min((0, 1), key=lambda side: len(paths[side]))
    scales = (piece.ops[1 - at], piece.ops[at])
    _check_memory(lifter, [source, *piece.sources, *(link.node for path in paths for link in path)])
    return Residual(node, source, paths[1 - at], paths[at], scales)


def _check_memory(lifter: Lifter, values: list[fx.Node]) -> None:
    """Refuse values that an in-place operation changes while others read them."""
    for value in values:
        if value in lifter.tainted:
            raise RefusedError(lifter.tainted[value])


_APART = "its two sides do not start from one value along plain chains"


def _why_bent(paths: list[tuple[Link, ...]]) -> str:
    gated = any(link.gate for path in paths for link in path)
    if gated and min(map(len, paths)) == 1:
        return "its shortcut is gated by the input"
    return "both its sides are nonlinear, so neither can be carried along the other"


def _trails(lifter: Lifter, ends: tuple[fx.Node, ...]) -> list[_Trail]:
    """Return the steps that lead to both values, back to where they meet, or as far as they go.

    They are followed side by side: in a deep network each alone would lead to its very input.
    """
    links: list[list[Link]] = [[] for _ in ends]
    reasons: list[str | None] = [None for _ in ends]
    heads, seen = list(ends), [{end} for end in ends]
    pending = set(range(len(ends)))
    while pending and heads[0] not in seen[1] and heads[1] not in seen[0]:
        for side in sorted(pending):
            found = link(lifter, heads[side])
            if not isinstance(found, Link):
                reasons[side] = found
                pending.discard(side)
                continue
            links[side].append(found)
            heads[side] = found.source
            seen[side].add(found.source)
    trails = zip(ends, links, reasons, strict=True)
    return [_Trail(end, tuple(steps), reason) for end, steps, reason in trails]


def check_readers(lifter: Lifter, residual: Residual) -> None:
    """Refuse a branch with a value that something outside it reads.

    Raises:
        RefusedError: naming the value.
    """
    nodes = [step.node for step in residual.branch]
    inside = {*nodes, *(node for step in residual.branch for node in step.passed), residual.total}
    for node in (n for n in inside if n is not residual.total):
        for user in node.users:
            if user not in inside and lifter.depends(user):
                where = str(node.target) if node.op == "call_module" else node.name
                raise RefusedError(f"{where} inside its branch is also read by {user.name}")


def check_kinds(residual: Residual) -> None:
    """Refuse a branch with a step that cannot hold more channels.

    Raises:
        RefusedError: naming the step.
    """
    for step in residual.branch:
        if len(step.ops) > 1:
            raise RefusedError("a step of its branch fuses several layers")
        for op in step.ops:
            if isinstance(op, Conv) and not op.transposed:
                continue
            if not isinstance(op, (Affine, AvgPool, Identity)) or step.windows:
                what = type(op).__name__.lower()
                raise RefusedError(
                    f"its branch holds a {what}, through which nothing can be carried"
                )
