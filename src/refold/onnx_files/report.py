"""The account of a folded file: what was done, what was left and why, and the proof."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refold.graph import Fold, Kept
from refold.onnx_files.proof import Trial
from refold.onnx_files.reading import subgraphs
from refold.table import render


@dataclass(frozen=True, eq=False, kw_only=True)
class OnnxReport:
    """What `fold_onnx` did to a file.

    Args:
        path: the file.
        output: what was written, if anything.
        steps: what was folded.
        kept: what was left as it was, each with `where` and `reason`.
        nodes_before: nodes by operator; constants are not counted.
        nodes_after: the same of the result.
        changed: whether the result differs from the file at all.
        trials: the runs that both files were compared on.
        done: what happened to each step, in one word.
    """

    path: Path
    output: Path | None
    steps: tuple[Fold, ...]
    kept: tuple[Kept, ...]
    nodes_before: dict[str, int]
    nodes_after: dict[str, int]
    changed: bool = False
    trials: tuple[Trial, ...] = ()
    done: str = "folded"

    @property
    def error(self) -> float:
        """The largest error of the runs, max|difference| / max|reference|."""
        return max((trial.error for trial in self.trials), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return the account as plain data, ready for JSON."""
        return {
            "path": str(self.path),
            "output": None if self.output is None else str(self.output),
            "steps": [step.to_dict() for step in self.steps],
            "kept": [item.to_dict() for item in self.kept],
            "nodes_before": self.nodes_before,
            "nodes_after": self.nodes_after,
            "trials": [trial.to_dict() for trial in self.trials],
        }

    def __str__(self) -> str:
        """Return a table of all steps and all that was kept, then one line of totals."""
        rows = [
            [step.where, self.done, step.detail,
             f"{step.parameters_before:,} -> {step.parameters_after:,}"]
            for step in self.steps
        ]  # fmt: skip
        rows += [[item.where, "kept", item.reason, ""] for item in self.kept]
        table = render(["where", "", "what", "parameters"], rows) + "\n" if rows else ""
        return table + self.summary()

    def summary(self) -> str:
        """Return how much was done and what it changed, as one line."""
        before, after = sum(self.nodes_before.values()), sum(self.nodes_after.values())
        kept = f", {len(self.kept)} kept" if self.kept else ""
        text = f"{len(self.steps)} {self.done}{kept}; nodes {before} -> {after}"
        return f"{text}; {self.proof()}" if self.trials else text

    def proof(self) -> str:
        """Return what the runs of both files showed, as one line."""
        runs = "run" if len(self.trials) == 1 else "runs"
        bound = max(self.trials, key=lambda trial: trial.error).bound
        return (
            f"equal in ONNX Runtime: largest error {self.error:.1e} in {len(self.trials)} {runs} "
            f"(rounding explains {bound:.1e})"
        )


def count(nodes: Iterable[Any]) -> dict[str, int]:
    """Return how many nodes there are of each operator, those inside others too; no constants."""
    return dict(Counter(node.op_type for node in _all(nodes) if node.op_type != "Constant"))


def _all(nodes: Iterable[Any]) -> Iterator[Any]:
    for node in nodes:
        yield node
        for below in subgraphs(node):
            yield from _all(below.node)
