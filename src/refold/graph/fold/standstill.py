"""Why a norm stays where it is: how far it could move on either side, and what stands there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import fx

from refold.algebra.operator import Affine, Input, Operator, Refusal, Sequence, chain
from refold.graph.calls import place_of, readers, reads_shape_only
from refold.graph.fold.fold_pass import FoldPass
from refold.graph.fold.record import Kept
from refold.graph.fold.region import Region, node_of, reader_of, source_of
from refold.graph.lift.piece import Piece
from refold.rules import RULES, Rule
from refold.rules.commute import pass_affine_backward, pass_affine_forward

_SERIES = tuple(rule for rule in RULES if rule.window == "series")


def standstill(fold: FoldPass, region: Region, norm: Affine) -> Iterator[Kept]:
    """Yield what keeps a norm that nothing takes in: rules that refuse, else where its ways end.

    Args:
        fold: the fold that left it.
        region: where it stands.
        norm: the leaf.
    """
    place = node_of(norm)
    ways = [
        way_of(fold, region, norm, rule) for rule in (pass_affine_backward, pass_affine_forward)
    ]
    for way in ways:
        if way.met is not None:
            node, reason = way.met
            pair = " + ".join(map(place_of, sorted([node, place])))
            yield Kept(fold.lifter.capture.full(pair), reason)
    if not any(way.met for way in ways):
        yield Kept(fold.path(place), _lonely(fold, place, *(way.passed for way in ways)))


def _lonely(fold: FoldPass, norm: fx.Node, before: list[fx.Node], after: list[fx.Node]) -> str:
    """Return where the ways of a norm end that may pass some calls, with nothing to take it in."""
    first, last = (passed[-1] if passed else norm for passed in (before, after))
    value = source_of(fold.lifter, first)
    held = _held(fold, value, first)
    while held is None and _hands_on(fold, value):
        first, value = value, source_of(fold.lifter, value)
        held = _held(fold, value, first)
    if held is not None:
        return held
    source, reader = _told(fold, before, value), _told(fold, after, *_readers(fold, last))
    comma = "," if ", but " in source else ""
    return f"no neighbour takes it in: it comes from {source}{comma} and goes to {reader}"


@dataclass
class Way:
    """How far a scale and shift may move in one direction.

    Args:
        passed: the calls that it may pass.
        met: the call that it may not pass or go into, and why.
    """

    passed: list[fx.Node] = field(default_factory=list[fx.Node])
    met: tuple[fx.Node, str] | None = None


def way_of(fold: FoldPass, region: Region, norm: Affine, rule: Rule) -> Way:
    """Return how far a norm may move.

    Args:
        fold: the fold that it is a part of.
        region: where it stands.
        norm: the leaf.
        rule: what carries it one step on, or back.
    """
    shadow, replay = fold.decisions_on(region).stand_in(region.op)
    parts = next(list(p) for p in _chains(shadow) if norm in map(replay.real, p))
    at, step, way = list(map(replay.real, parts)).index(norm), -1 if rule.is_backward else 1, Way()
    while 0 <= at + step < len(parts):
        other, low = parts[at + step], min(at, at + step)
        if isinstance(other, Input):
            break
        window = Sequence((parts[low], parts[low + 1]))
        moved = rule(window)
        why = _refusal(window, moved)
        if why is not None:
            way.met = node_of(replay.real(other)), why
        if why is not None or not isinstance(moved, Sequence):
            break
        way.passed.append(node_of(replay.real(other)))
        parts[low : low + 2] = moved.parts
        at += step
    return way


def _chains(op: Operator) -> Iterator[tuple[Operator, ...]]:
    """Yield the chains of an expression, those of its joins' branches included."""
    yield chain(op)
    for part in chain(op):
        for branch in getattr(part, "parts", ()):
            yield from _chains(branch)


def _refusal(window: Sequence, moved: object) -> str | None:
    """Return why neighbours neither fold nor change places, where a rule tells."""
    for rule in _SERIES:
        outcome = rule(window)
        if isinstance(outcome, Refusal):
            return outcome.reason
        if outcome is not None:
            return None
    return moved.reason if isinstance(moved, Refusal) else None


def _held(fold: FoldPass, value: fx.Node, reader: fx.Node) -> str | None:
    """Return why the value that a norm would go into must stay as it is."""
    elsewhere = fold.lifter.capture.elsewhere
    if value in elsewhere:
        return elsewhere[value]
    own = reader_of(fold.lifter, reader)
    others = [place_of(n) for n in value.users if n is not own and not reads_shape_only(n, value)]
    if not others or not isinstance(fold.regions.piece(value), Piece):
        return None
    return f"the value of {place_of(value)} is also read by {', '.join(others)}"


def _readers(fold: FoldPass, value: fx.Node) -> list[fx.Node]:
    """Return what reads a value; what only hands it on does not count."""
    found = list(dict.fromkeys(readers(value)))
    return _readers(fold, found[0]) if len(found) == 1 and _hands_on(fold, found[0]) else found


def _hands_on(fold: FoldPass, node: fx.Node) -> bool:
    piece = fold.regions.piece(node)
    return isinstance(piece, Piece) and piece.is_nothing


def _told(fold: FoldPass, passed: list[fx.Node], *ends: fx.Node) -> str:
    """Return where a way ends, through what it leads, and why the end is no neighbour."""
    names = dict.fromkeys(map(place_of, ends))
    via, why = dict.fromkeys(map(place_of, passed)), _why(fold, *ends)
    through = f" through {', '.join(via)}" if via else ""
    return ", ".join(names) + through + (f", but {why}" if why else "")


def _why(fold: FoldPass, *ends: fx.Node) -> str | None:
    """Return why one call is no neighbour although its arithmetic would make it one."""
    if len(ends) != 1:
        return None
    piece = fold.lifter.lift(ends[0])
    return piece if isinstance(piece, str) else fold.regions.reasons.get(ends[0])
