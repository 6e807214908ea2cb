"""Steps that would be wrong in another run of the same code: they are left alone."""

from __future__ import annotations

from torch import fx

from refold.graph.calls import name_of
from refold.graph.fold.fold_pass import FoldPass
from refold.graph.fold.setbacks import Step
from refold.graph.surgery.edits import Edits, alive
from refold.graph.trace.capture import Capture
from refold.graph.trace.frames import frame_of
from refold.graph.trace.other_runs.evidence import Evidence
from refold.graph.trace.other_runs.variants import Snapshot


def keep_code_that_pads(capture: Capture) -> None:
    """Keep the calls of code that pads for some sizes alone, before a fold is built on them.

    Such code cannot be written anew, which would show only when the fold is done.
    """
    evidence = capture.evidence
    if evidence is None:
        return
    for node in capture.graph.nodes:
        if name_of(node) != "pad" or evidence.objection({node, *node.users}, ()) is None:
            continue
        frame = frame_of(node)
        if (reason := evidence.other_path(frame)) is not None:
            capture.stays.update((n, reason) for n in frame.nodes if n.op == "call_function")


def must_hold(fold: FoldPass) -> None:
    """Leave the steps alone that would not hold in another run of the same code.

    Raises:
        SetbackError: when there are such steps; the next fold does without them.
    """
    evidence = fold.lifter.capture.evidence
    if evidence is None:
        return
    again: str | None = None
    edits = fold.editor.edits
    stands_for: dict[fx.Node, list[fx.Node]] = {}
    for node in edits.swapped:
        for later in edits.chain(node):
            stands_for.setdefault(later, []).append(node)
    for step in fold.steps:
        nodes = {first for node in step.nodes for first in (node, *stands_for.get(node, ()))}
        nodes -= _passed_at_the_end(nodes, step, edits, evidence.first)
        only_read = {node.name for node in _only_read(nodes, edits)}
        nodes = {node for node in nodes if node.name not in only_read}
        names = step.parts - only_read
        if (reason := evidence.objection(nodes, names)) is not None:
            again = reason
            calls = _calls_at_fault(evidence, nodes, names)
            if not calls or not fold.left.keep_calls(calls, reason):
                fold.left.note_wrong(step, reason)
    if again is not None:
        raise fold.left.setback_for(again)


def _calls_at_fault(
    evidence: Evidence, nodes: set[fx.Node], names: frozenset[str]
) -> frozenset[str]:
    """Return functions without which a step would hold: one of them, else all; none if none do."""
    called = evidence.functions(names)
    for some in ([name] for name in called), [called]:
        for left_out in some:
            rest = {node for node in nodes if node.name not in left_out}
            if evidence.objection(rest, names.difference(left_out)) is None:
                return frozenset(left_out)
    return frozenset()


def _only_read(nodes: set[fx.Node], edits: Edits) -> set[fx.Node]:
    """Return the calls at the start of a step that stay as they were: it only reads them."""
    same = {n for n in nodes if n in edits.before and alive(n) and edits.is_same_call(n)}
    rest, found = set(nodes), set[fx.Node]()
    while first := {n for n in same - found if rest.isdisjoint(n.all_input_nodes)}:
        found |= first
        rest -= first
    return found


def _passed_at_the_end(
    nodes: set[fx.Node], step: Step, edits: Edits, first: Snapshot
) -> set[fx.Node]:
    """Return the bypassed calls that no part of a step reads: they do not belong to it.

    The value of such a call is the one before it, which the step keeps for whoever reads it.
    """
    past = {n for n in nodes - step.nodes if edits.swapped[n] not in edits.inserted}
    past &= first.readers.keys()  # a call that an earlier step made has none in the model
    loose = set[fx.Node]()
    while more := {n for n in past - loose if (nodes - loose).isdisjoint(first.readers[n])}:
        loose |= more
    return loose
