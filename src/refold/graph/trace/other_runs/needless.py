"""What other runs of a root can tell nothing about: code that asks nothing, and is closed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import fx

from refold.graph.calls import FILLS, Kind, kind_of, name_of
from refold.graph.trace.code.closed import is_closed
from refold.graph.trace.code.unseen import catches
from refold.graph.trace.effects import mutated
from refold.graph.trace.frames import Frame, frame_of, nodes_in, walk
from refold.graph.trace.leaves import has_hooks
from refold.graph.trace.other_runs.variants import Snapshot, picks
from refold.graph.trace.recorder.recorder import Recorder
from refold.graph.trace.recorder.steady import Form, form_of


@dataclass(frozen=True, eq=False)
class Needless:
    """The parts of a recorded root that do the same in any run, whatever it is given.

    Their code asks nothing of a value but its rank, picks nothing from one and makes none, and
    draws on nothing that may be another thing in the next call.

    Args:
        says_all: whether that is so of the whole root.
        steady: its parts of that kind, by path, with the form of what they were called with.
    """

    says_all: bool
    steady: dict[str, Form]

    @classmethod
    def of(cls, recorder: Recorder, first: Snapshot) -> Needless:
        """Find them.

        Args:
            recorder: the recorded run.
            first: its graph as it was recorded.
        """
        root, restless = recorder.root_frame, _restless(recorder, first.order)
        around = recorder.others  # questions whose answers no input changes
        unasked = all(what in around for _, what in recorder.decisions)
        is_closed_off = not (recorder.opaque or recorder.constants or recorder.keeps)
        says_all = unasked and is_closed_off and not restless
        if says_all or recorder.real or recorder.keeps:  # no other run is made, or none is of use
            return cls(says_all, {})
        restless |= {frame for frame, _ in recorder.decisions} | {*recorder.bakes}
        times = Counter(frame.path for frame in walk(root) if frame.method == "forward")
        restless |= {frame for frame in walk(root) if times[frame.path] > 1}
        forms = ((f, _form(recorder, first, f)) for f in _outermost(root, restless))
        return cls(says_all, {frame.path: form for frame, form in forms if form is not None})


def _restless(recorder: Recorder, order: Iterable[fx.Node]) -> set[Frame]:
    """Return the frames whose own code may do something else in another run."""
    found = recorder.gives_size | recorder.asks_form | recorder.hands_shape | recorder.loses_size
    found |= {frame for frame, _ in recorder.unsettled}
    found |= {frame_of(node) for node in order if _may_differ(recorder, node)}
    known, asked = dict[type, bool](), dict[int, bool]()
    for frame in walk(recorder.root_frame):
        module = frame.module
        if id(module) not in asked:
            asked[id(module)] = has_hooks(module) or not is_closed(module, known)
        if asked[id(module)] or catches(getattr(module, frame.method)):
            found.add(frame)
    return found


def _may_differ(recorder: Recorder, node: fx.Node) -> bool:
    """Say whether a call picks from a value, makes one, or runs code that was not followed."""
    if node.op == "call_module":
        return node.target in recorder.opaque
    if node.op == "get_attr":
        return node.target in recorder.constants
    return picks(node) or "length" in node.meta or _makes(node)


def _makes(node: fx.Node) -> bool:
    return name_of(node).rstrip("_") in FILLS or bool(kind_of(node) & Kind.RANDOM)


def _outermost(root: Frame, restless: set[Frame]) -> Iterator[Frame]:
    """Yield the largest parts of a root that hold nothing restless."""
    busy = set[Frame]()
    for frame in restless:
        current: Frame | None = frame
        while current is not None and current not in busy:
            busy.add(current)
            current = current.parent
    pending = [root]
    while pending:
        frame = pending.pop()
        if frame is root or frame in busy or frame.method != "forward":
            pending.extend(frame.children)
        else:
            yield frame


def _form(recorder: Recorder, first: Snapshot, frame: Frame) -> Form | None:
    """Return the form of a part's call; None where it is bound up with what is around it.

    One that stands by itself reads no other value than it was given, changes none of them, and
    gives one that it has made.
    """
    inner = {node for part in walk(frame) for node in part.nodes}
    given = {*nodes_in((frame.args, frame.kwargs))}
    output = frame.output
    if not isinstance(output, fx.Node) or output not in inner or recorder.is_static(output):
        return None
    changed = (value for node in recorder.writers if node in inner for value in mutated(node))
    if not all(value in inner and value.op != "get_attr" for value in changed):
        return None
    for node in inner:
        if not all(value in inner or value in given for value in node.all_input_nodes):
            return None
        if node is not output and not inner.issuperset(first.readers[node]):
            return None
    return form_of(frame.args, frame.kwargs, recorder.rank_of)
