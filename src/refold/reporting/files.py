"""The page of an ONNX file: its own graph before and after the fold."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import fx

from refold.account import Account
from refold.graph import Capture
from refold.inputs import Arguments
from refold.onnx_files import FoldedGraphs, graphs_of, in_double, kind_of
from refold.reporting.comparison import Comparison, Side
from refold.reporting.facts import facts_of
from refold.reporting.flow import draw
from refold.reporting.page import write_page
from refold.reporting.running import Value, run
from refold.workload import Workload


def report_onnx(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    allow_growth: bool = False,
) -> Account:
    """Write an HTML page that shows an ONNX file before and after folding, and check the fold.

    Both files run in ONNX Runtime. Step by step they are compared in torch in float64; what torch
    has no layer for is given there by ONNX Runtime.

    Args:
        path: the file.
        output: the page to create or replace.
        allow_growth: also make merges that need more multiply-adds than their parts.

    Returns:
        What was folded and what was left.

    Raises:
        RefusedError: when the file is quantized.
        InputError: when it is damaged or cannot be run, or the place cannot be written.
        NotEquivalentError: when the result is another function, which is a defect of refold.
    """
    found = graphs_of(path, allow_growth=allow_growth)
    before, after = _side(found.before), _side(found.after)
    inputs: Arguments = found.inputs
    before.values = run(found.before, inputs, found.known, in_double(found.before))
    after.values = run(found.after, inputs, found.known)
    costs = [_cost(side) for side in (before, after)]
    account = Account(
        model=after.model, steps=found.steps, kept=found.kept, cost_before=costs[0],
        cost_after=costs[1],
    )  # fmt: skip
    subject = Comparison(
        name=Path(path).name,
        before=before.model,
        after=after.model,
        inputs=found.inputs,
        account=account,
    )
    facts = facts_of(subject, before, after)
    facts["proof"] = _proof(found, before, after)
    write_page(facts, output)
    return account


def _side(capture: Capture) -> Side:
    side = Side(capture.graph_module(), draw([capture]), {})
    for box in side.flow.boxes:
        box.title = kind_of(box.node) or box.title
        if box.kind == "input":
            box.title = box.place
    return side


def _cost(side: Side) -> Workload:
    costs = [value.macs for value in side.values.values()]
    parameters = sum(parameter.numel() for parameter in side.model.parameters())
    return Workload(parameters, sum(costs) if costs else None)


def _proof(found: FoldedGraphs, before: Side, after: Side) -> dict[str, Any]:
    """Return what the page says of the runs: the worst output in float64, and in the runtime."""
    ends = zip(_outputs(before), _outputs(after), strict=True)
    errors = [one.difference(other) for one, other in ends if one and other]
    known = [error for error in errors if error is not None]
    return {
        "exact": max(known) if known else None,
        "inputs": max(1, len(found.trials)),
        "shipped": max((trial.error for trial in found.trials), default=0.0),
        "vacuous": False,
        "runtime": "ONNX Runtime",
    }


def _outputs(side: Side) -> list[Value | None]:
    assert side.flow.root is not None
    end = next(node for node in side.flow.root.graph.nodes if node.op == "output")
    read: Callable[[fx.Node], Value | None] = side.values.get
    return [read(node) for node in end.all_input_nodes]
