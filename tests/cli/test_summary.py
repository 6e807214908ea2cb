"""What `convert` says changed."""

from __future__ import annotations

from refold.cli.summary import COSTLIER, kept_lines
from refold.graph.fold.record import Kept


def test_reasons_are_said_once_and_cost_is_one_of_them() -> None:
    kept = [
        Kept("a", "costlier: 9 instead of 8", costlier=True),
        Kept("", "its module is called twice"),
        Kept("b", "costlier: 7 instead of 6", costlier=True),
    ]
    assert kept_lines(kept) == [
        f"kept at a and 1 more: {COSTLIER}",
        "kept at the root: its module is called twice",
    ]
    assert kept_lines([]) == []
