"""Which boxes of a network became which box of its result."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from refold.account import Account
from refold.graph import Fold
from refold.reporting.flow import Box, Flow


@dataclass(eq=False)
class Origins:
    """Where the boxes of a result come from.

    Args:
        of: for each box of the result, the boxes before that became it.
        layers: among them, the layers that the account names, or that have other channels now.
        steps: the steps of the account that end in a box, by the box.
        gone: what the account says of boxes before that became nothing.
    """

    of: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    layers: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    steps: dict[int, list[Fold]] = field(default_factory=dict[int, list[Fold]])
    gone: dict[int, str] = field(default_factory=dict[int, str])

    @property
    def changed(self) -> list[int]:
        """The boxes of the result that a verb made or changed, first to last."""
        return sorted(self.layers)


def trace_back(before: Flow, after: Flow, account: Account) -> Origins:
    """Return where every box of a result comes from.

    What the account names is taken from there; a box of the same place and kind is the same; what
    is left belongs to whatever took in the values that it reads.

    Args:
        before: the network.
        after: what a verb made of it.
        account: of the verb.
    """
    found = Origins()
    named = _named(before.boxes, account)
    for number, box in enumerate(after.boxes):
        if box.place in named:
            sources, steps = named[box.place]
            for owner, part in _shares(number, sources, before.boxes, after.boxes, named).items():
                found.steps[owner] = steps
                if part:
                    found.of[owner], found.layers[owner] = part, list(part)
    taken = {source for sources in found.of.values() for source in sources}
    for one, other in _same(before.boxes, after.boxes, taken):
        found.of.setdefault(other, []).append(one)
        taken.add(one)
        if _differs(before.boxes[one], after.boxes[other]):
            found.layers.setdefault(other, [one])
    _note_gone(before.boxes, after.boxes, account, found, taken)
    _adopt(before.boxes, found, taken)
    for sources in found.of.values():
        sources.sort()
    return found


def _named(boxes: list[Box], account: Account) -> dict[str, tuple[set[int], list[Fold]]]:
    """Return, for each place that a step ends in, the boxes that went into it, and the steps."""
    at: dict[str, list[int]] = {}
    for number, box in enumerate(boxes):
        at.setdefault(box.place, []).append(number)
    named: dict[str, tuple[set[int], list[Fold]]] = {}
    for step in _folds(account):
        sources, steps = set[int](), list[Fold]()
        for place in step.made_of:
            earlier = named.get(place)
            sources |= earlier[0] if earlier else set(at.get(place, ()))
            steps += earlier[1] if earlier else []
        for place in step.made_of:
            if place != step.where:
                named.pop(place, None)
        named[step.where] = sources, [*dict.fromkeys([*steps, step])]
    return named


def _shares(
    number: int, sources: set[int], before: list[Box], after: list[Box], named: Collection[str]
) -> dict[int, list[int]]:
    """Return which of the boxes that a step names became which box: it may leave a chain of some.

    Args:
        number: the box that the step ends in.
        sources: the boxes before.
        before: all boxes before.
        after: all boxes of the result.
        named: the places that steps end in.
    """
    heirs = {box.place: at for at, box in enumerate(after) if box.place not in named}
    heirs[after[number].place] = owner = number
    shares: dict[int, list[int]] = {number: []}
    for source in sorted(sources):
        owner = heirs.get(before[source].place, owner)
        shares.setdefault(owner, []).append(source)
    return shares


def _folds(account: Account) -> Iterator[Fold]:
    """Yield the steps of an account that say where they ended and what of."""
    for step in account.steps:
        if isinstance(step, Fold):  # pyright: ignore[reportUnnecessaryIsInstance]  # a pruning's are not
            yield step


def _same(before: list[Box], after: list[Box], taken: set[int]) -> Iterator[tuple[int, int]]:
    """Yield pairs of boxes of one place and kind, the last first: what joins branches goes."""
    at: dict[tuple[str, str], list[int]] = {}
    for number, box in enumerate(before):
        if number not in taken:
            at.setdefault((box.place, box.kind), []).append(number)
    for number, box in reversed([*enumerate(after)]):
        same = at.get((box.place, box.kind))
        if same:
            yield same.pop(), number


def _differs(one: Box, other: Box) -> bool:
    """Say whether a layer that kept its name has other channels now."""
    shapes = [None if box.weight is None else box.weight.shape for box in (one, other)]
    return one.detail != other.detail or shapes[0] != shapes[1]


def _note_gone(
    before: list[Box], after: list[Box], account: Account, found: Origins, taken: set[int]
) -> None:
    places = {box.place for box in after}
    gone = {step.where: step for step in _folds(account) if step.where not in places}
    for number, box in enumerate(before):
        step = gone.get(box.place)
        if step is not None and number not in taken:
            found.gone[number] = step.rule


def _adopt(boxes: list[Box], found: Origins, taken: set[int]) -> None:
    """Give boxes that are no more to whatever took in what they read, or is read from them."""
    owner = {source: target for target, sources in found.of.items() for source in sources}
    changed = set(found.layers)
    for number, box in enumerate(boxes):
        if number in taken or box.kind in ("input", "output"):
            continue
        for source in sorted(box.reads, reverse=True):  # the last is what a shortcut goes around
            target = owner.get(source)
            if target in changed:
                owner[number] = target
                found.of[target].append(number)
                break


def places(boxes: Mapping[int, Box], where: str) -> list[int]:
    """Return the boxes that an entry of an account speaks of: `a + b`, or all of a part."""
    names = where.split(" + ")
    exact = [number for number, box in boxes.items() if box.place in (*names, where)]
    return exact or _below(boxes.items(), [*names, where])


def _below(boxes: Iterable[tuple[int, Box]], names: list[str]) -> list[int]:
    starts = tuple(f"{name}." for name in names if name)
    return [number for number, box in boxes if starts and box.place.startswith(starts)]
