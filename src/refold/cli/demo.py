"""`refold demo`: digits learnt and deployed; three networks folded, run on photographs, timed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refold.cli import options
from refold.cli.console import count, say, step, table
from refold.cli.demo_nets import NETS, DemoNet, subject_of
from refold.cli.demo_photos import PHOTOGRAPHS, labels, photographs, top5
from refold.cli.demo_story import ROUNDS, RUNTIME_TITLES, tell_story
from refold.cli.proof import prove
from refold.cli.subject import Subject
from refold.cli.summary import NetworkSize, size_of
from refold.errors import InputError, NotEquivalentError

if TYPE_CHECKING:
    from refold.bench import BenchmarkTable

Output = Annotated[
    Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where the ONNX files go.")
]


@dataclass(frozen=True)
class Findings:
    """What the demo measured on one network."""

    name: str
    before: NetworkSize
    after: NetworkSize
    error: float
    timings: BenchmarkTable

    def cells(self) -> dict[str, str]:
        """Return the network's cells of the table, by row."""
        before, after = self.before, self.after
        cells = {
            "conv and linear": f"{before.layers} -> {after.layers}",
            "norms": f"{before.norms} -> {after.norms}",
            "parameters": f"{count(before.parameters)} -> {count(after.parameters)}",
            "multiply-adds": f"{count(before.macs)} -> {count(after.macs)}",
            "error in float64": f"{self.error:.1e}",
            "top-5 labels": "same",  # or the demo would have stopped
        }
        for runtime, title in RUNTIME_TITLES.items():
            times, faster = _timing_cells(self.timings, runtime)
            cells |= {title: times, f"{title} ratio": faster}
        return cells


def demo(output: Output = Path("demo-out"), seed: options.Seed = 0) -> None:
    """Train a network on digits and deploy it; then fold, prove, export and time three more."""
    _make_folder(output)
    tell_story(output, seed)
    findings = [_tour(net, output, seed) for net in NETS]
    columns = [found.cells() for found in findings]
    rows = [[title, *(cells[title] for cells in columns)] for title in columns[0]]
    table("before -> after", ["", *(found.name for found in findings)], rows)
    say(f"timed on {findings[0].timings.machine}")
    say(f"the ONNX files are in {output}")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder {folder} ({error.strerror}): give another with --output"
        ) from error


def _tour(net: DemoNet, folder: Path, seed: int) -> Findings:
    import refold

    subject = subject_of(net, seed)
    with step(f"{net.name}: fold"):
        plan = refold.plan(subject.model, subject.example_inputs)
        folded = plan.apply()
    with step(f"{net.name}: verify in float64"):
        proof = prove(_smaller(subject), folded, refold.reparameterize)
    with step(f"{net.name}: export to ONNX and run on photographs"):
        path = refold.export(folded, folder / f"{net.name}.onnx", subject.example_inputs)
        _compare_answers(net, subject, path)
    with step(f"{net.name}: time"):
        timings = refold.benchmark(
            {"before": subject.model, "after": folded},
            subject.example_inputs,
            tuple(RUNTIME_TITLES),
            rounds=ROUNDS,
        )
    before, after = size_of(subject.model, plan.cost_before), size_of(folded, plan.cost_after)
    return Findings(net.name, before, after, proof.exact.max_rel_error, timings)


def _smaller(subject: Subject) -> Subject:
    """Halve the example: float64 convolutions are slow, and every border is still there."""
    halves = tuple(x[..., : x.shape[-2] // 2, : x.shape[-1] // 2] for x in subject.example_inputs)
    return replace(subject, example_inputs=halves)


def _compare_answers(net: DemoNet, subject: Subject, path: Path) -> None:
    """Ask the original and the exported file about each photograph; both must say the same."""
    import torch

    from refold.exporting import onnx_session, run_onnx

    images = photographs(net.side)
    with torch.no_grad():
        before = top5(subject.model(images))
    (logits,) = run_onnx(onnx_session(path), (images,))
    after = top5(logits)
    for photograph, old, new in zip(PHOTOGRAPHS, before, after, strict=True):
        if old != new:
            raise NotEquivalentError(
                f"{net.name} says {labels(old)} of {photograph!r}, but {path} says {labels(new)}"
            )
    if net.is_trained:
        rows = [
            [photograph, ", ".join(labels(old)), ", ".join(labels(new))]
            for photograph, old, new in zip(PHOTOGRAPHS, before, after, strict=True)
        ]
        title = f"{net.name}: top-5 labels"
        table(title, ["photograph", "before (PyTorch)", "after (ONNX Runtime)"], rows)


def _timing_cells(timings: BenchmarkTable, runtime: str) -> tuple[str, str]:
    """Return the medians in milliseconds, and the median of the paired ratios."""
    before, after = timings.row(runtime, "before"), timings.row(runtime, "after")
    if before.milliseconds is None or after.milliseconds is None or after.speedup is None:
        return before.skipped or after.skipped, "-"
    times = f"{before.milliseconds.median:.1f} -> {after.milliseconds.median:.1f} ms"
    return times, f"{after.speedup.median:.2f}x"
