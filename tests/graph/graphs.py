"""Captured graphs with what the passes need, for the tests of single passes."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from refold.graph.fold.fold_pass import FoldPass
from refold.graph.fold.region import Region, Regions
from refold.graph.lift.lifter import Lifter
from refold.graph.policy import Policy
from refold.graph.surgery.editor import Editor
from refold.graph.trace.capture import capture_all


def lifter(model: nn.Module, *inputs: Any) -> Lifter:
    """Return the lifter of a model that one recording follows; without inputs, no shapes known."""
    [found] = capture_all(model.eval(), inputs or None).captures
    return Lifter.of(found)


def nodes(lifter: Lifter) -> dict[str, fx.Node]:
    """Return the nodes by name; the layers by their last name."""
    return {node.name: node for node in lifter.capture.graph.nodes}


def regions(model: nn.Module, *inputs: Any, **options: Any) -> list[Region]:
    """Return the regions of a model."""
    found = Regions(lifter(model, *inputs), **options)
    return found.largest()


def fold_pass(model: nn.Module, *inputs: Any, allow_growth: bool = False) -> FoldPass:
    """Return a fold pass that has not run."""
    known = lifter(model, *inputs)
    return FoldPass(known, Editor(known.capture), Policy(allow_growth))
