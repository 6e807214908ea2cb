"""Steps that failed: the fold starts over without them and says why.

A step edits a graph, and edits cannot be undone. When one fails half-way, or the edited graph
cannot be written as code in the end, all edits are thrown away, the step is noted here, and the
fold starts over; it does the same as before, except for that step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import fx

from refold.errors import RefoldError

_MAX_ROUNDS = 24
_MOST_BY_TURNS = 8


class SetbackError(Exception):
    """The fold must start over; the step that failed has been noted."""


@dataclass(eq=False)
class Step:
    """One step of a fold.

    Args:
        parts: the names of the original nodes that it starts from; they are the same every time.
        nodes: the nodes that it read, removed and made.
    """

    parts: frozenset[str]
    nodes: set[fx.Node] = field(default_factory=set[fx.Node])


class LeftAlone:
    """The steps of one capture that are not tried again, with the reasons.

    Args:
        whole: why nothing at all is folded in this capture.
    """

    def __init__(self) -> None:
        self.whole: str | None = None
        self._reasons: dict[frozenset[str], str] = {}
        self._calls: dict[str, str] = {}
        self._rounds = 0

    def reason(self, step: Step) -> str | None:
        """Return why a step is left alone, None where it is not."""
        return self._reasons.get(step.parts)

    def note_wrong(self, step: Step, reason: str) -> None:
        """Note that a step turned out to be wrong."""
        self._reasons[step.parts] = reason

    def copy(self) -> LeftAlone:
        """Return the same notes, to be added to."""
        fresh = LeftAlone()
        fresh.whole, fresh._reasons = self.whole, dict(self._reasons)
        fresh._calls = dict(self._calls)
        return fresh

    def keep_calls(self, names: Iterable[str], reason: str) -> bool:
        """Note that calls of functions must stay in whatever step; False where that is known."""
        fresh = dict.fromkeys(names, reason)
        is_new = not fresh.keys() <= self._calls.keys()
        self._calls.update(fresh)
        return is_new

    def kept_calls(self, graph: fx.Graph) -> dict[fx.Node, str]:
        """Return the calls in a graph that must stay, with the reasons."""
        return {node: self._calls[node.name] for node in graph.nodes if node.name in self._calls}

    def setback_of_latest(self, steps: list[Step], error: Exception) -> SetbackError:
        """Note that some of these steps led to an error; return the setback to raise.

        At first those are noted that no other builds on.

        What the others did may be right, and is tried alone the next time; it is not for ever.
        """
        if self._rounds >= _MOST_BY_TURNS:
            return self.setback(steps, error)
        latest, later = list[Step](), set[fx.Node]()
        for step in reversed(steps):
            if later.isdisjoint(step.nodes):
                latest.append(step)
            later |= step.nodes
        return self.setback(latest, error)

    def setback(self, steps: list[Step], error: Exception) -> SetbackError:
        """Note that these steps led to an error; return the setback to raise.

        Where no step did, the whole capture is left alone.
        """
        reason = cause(error)
        if not steps:
            self.whole = reason
        self._reasons.update((step.parts, reason) for step in steps)
        return self.setback_for(reason)

    def setback_for(self, reason: str) -> SetbackError:
        """Return the setback that begins a new round; after too many, leave the capture alone."""
        self._rounds += 1
        if self._rounds > _MAX_ROUNDS:
            self.whole = reason
        return SetbackError(reason)


def cause(error: Exception) -> str:
    """Return what an error says, as the reason why something was not folded."""
    if isinstance(error, RefoldError):
        return str(error)
    line = (str(error).splitlines() or [""])[0]
    kind = type(error).__name__
    return f"the fold failed with {kind}: {line} (this is a defect of refold; please report it)"
