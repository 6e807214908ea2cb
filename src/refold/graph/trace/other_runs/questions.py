"""Questions that code asks about its input: what it does where the answer is another one."""

from __future__ import annotations

import linecache
import re
from collections import Counter
from collections.abc import Callable, Iterable

from torch import fx

from refold.graph.trace.frames import Frame, leaves
from refold.graph.trace.other_runs.variants import Recorded, Variant
from refold.graph.trace.recorder.notebook import Flip

_MAX_FLIPS = 24
_MOST_ON_A_LINE = 6
_LONG = 64  # a loop that asks the same for ever gets a true answer in the end


class Questions:
    """The runs of one recorded root in which a question of its code has another answer."""

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded
        self._flipped: dict[str, list[Variant | str]] = {}
        self._asked = Counter[str]()  # how often a line asks where it is answered otherwise

    def otherwise(self, what: str) -> list[Variant | str]:
        """Return the runs in which a question has another answer."""
        if what not in self._flipped:
            self._flipped[what] = self._flip(what)
        return self._flipped[what]

    def objection(
        self, what: str, places: list[fx.Node], *, is_named: Callable[[], bool]
    ) -> str | None:
        """Return why a step would be wrong where a question has another answer, or None.

        Args:
            what: the question.
            places: the nodes that the step joins.
            is_named: says whether the source of who asks names parts of the step. Where the other
                path cannot be run, nothing else is known of it.
        """
        for found in self.otherwise(what):
            if isinstance(found, Variant):
                reason = found.objection(places)
            else:
                reason = found if is_named() else None
            if reason:
                return reason
        return None

    def _flip(self, what: str) -> list[Variant | str]:
        """Record anew with a question of a line answered otherwise: each time, and the first time.

        One line may decide for many modules, or several times for one (`max(x.shape) > 9`): where
        these runs are no others, each of its decisions is tried, and the same answer to all.
        """
        recorder = self._recorded.recorder
        if len(self._flipped) >= _MAX_FLIPS:
            return [what]
        if what in recorder.others:
            return self._runs(Flip(what, _LONG, always=one) for one in recorder.others[what])
        frames = [frame for frame, asked in recorder.decisions if asked == what]
        count = len(frames)
        found = self._runs([Flip(what, count)])
        apart = {frame for frame in frames if _gives_tensors(frame)}
        asks_more = self._asked[what] > count  # `h == 9 and w == 9`
        if found and _agree(found) and len(apart) == count and not asks_more:
            return found  # no answer of one frame can make up for that of another
        if count > 1:
            found = [*self._runs([Flip(what)]), *found]
        if not _agree(found):
            return found
        flips = [Flip(what, skip=at) for at in range(1, min(count, _MOST_ON_A_LINE))]
        same = recorder.replies[what]  # always that is the recorded run
        always = (one for one in (True, False) if any(reply is not one for reply in same))
        flips += [Flip(what, _LONG, always=one) for one in always]
        return [*found, *self._runs(flips)]

    def _runs(self, flips: Iterable[Flip]) -> list[Variant | str]:
        return [run for flip in flips if (run := self._run_flipped(flip)) is not None]

    def _run_flipped(self, flip: Flip) -> Variant | str | None:
        try:
            found = self._recorded.again.run(self._recorded.arguments, flip=flip)
        except Exception as error:
            return None if _is_refusal(error) else flip.what
        times = sum(asked == flip.what for _, asked in found.decisions)
        self._asked[flip.what] = max(self._asked[flip.what], times)
        return self._recorded.beside(flip.what, found)


def _agree(found: list[Variant | str]) -> bool:
    """Say whether all these runs are like the recorded one."""
    return not any(isinstance(run, str) or run.differs for run in found)


def _gives_tensors(frame: Frame) -> bool:
    return all(isinstance(leaf, fx.Node) for leaf in leaves(frame.output))


def _is_refusal(error: Exception) -> bool:
    """Say whether the model's own code raised an error on purpose."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    line = linecache.getline(trace.tb_frame.f_code.co_filename, trace.tb_lineno).strip()
    return re.search(r"\b(raise|assert)\b", line) is not None
