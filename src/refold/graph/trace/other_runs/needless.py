"""Whether other runs of a root can tell nothing: its code asks nothing, and is closed."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from refold.graph.calls import FILLS, Kind, kind_of, name_of
from refold.graph.trace.code.closed import is_closed
from refold.graph.trace.frames import walk
from refold.graph.trace.leaves import has_hooks
from refold.graph.trace.other_runs.variants import picks
from refold.graph.trace.recorder.recorder import Recorder


def says_all(recorder: Recorder, order: Iterable[fx.Node]) -> bool:
    """Say whether a run of a root does the same as any other, whatever it is given.

    Its code asks nothing of a value but its rank, picks nothing from one and makes none, and draws
    on nothing that may be another thing in the next call.

    Args:
        recorder: the recorded run.
        order: its nodes as they were recorded.
    """
    asks = recorder.gives_size or recorder.asks_form or recorder.unsettled
    if asks or recorder.opaque or recorder.constants or recorder.keeps:
        return False
    if any(what not in recorder.others for _, what in recorder.decisions):
        return False
    if any(picks(node) or _makes(node) for node in order):
        return False
    known = dict[type, bool]()
    modules = {id(frame.module): frame.module for frame in walk(recorder.root_frame)}
    return not any(has_hooks(m) or not is_closed(m, known) for m in modules.values())


def _makes(node: fx.Node) -> bool:
    return name_of(node).rstrip("_") in FILLS or bool(kind_of(node) & Kind.RANDOM)
