"""`refold remove-residuals`: what it costs, the network as a plain chain, and the proof."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refold.cli import options
from refold.cli.bench import Measure, measured_in
from refold.cli.console import note, print_json, say, say_block, step, table
from refold.cli.destination import check_destination, sources_of
from refold.cli.onnx_model import is_onnx
from refold.cli.onnx_passes import rewrite_file
from refold.cli.page import check_page, write_page
from refold.cli.proof import prove
from refold.cli.shipping import ship
from refold.cli.subject import Subject, prepare
from refold.cli.summary import kept_lines, record, size_of, size_rows

if TYPE_CHECKING:
    from refold.equivalence import Equivalence
    from refold.residuals import Removal

STEEP = 4.0
SLOWER = (
    "removing residuals alone usually costs speed: it is for devices and compilers that want a "
    "plain chain, and for pruning channels that a residual ties together"
)
Strict = Annotated[
    bool, typer.Option("--strict", help="Fail and write nothing if a residual has to stay.")
]
RuntimeOption = Annotated[list[str] | None, measured_in("eager")]


def remove_residuals(
    *,
    output: options.Output = None,
    network: options.Network,
    strict: Strict = False,
    measure: Measure = False,
    runtime: RuntimeOption = None,
    report: options.Report = None,
    as_json: options.Json = False,
) -> None:
    """Rewrite a network without residual additions; print what that costs, verify in float64.

    An .onnx file, whoever wrote it, becomes an .onnx or .xml file without them.
    """
    import refold
    from refold.account import require_none
    from refold.residuals import removal

    if is_onnx(network.model):
        rewrite_file(network, output, locals(), strict=strict)
        return
    sources = sources_of(network)
    place = None if output is None else check_destination(output, sources=sources)
    page = check_page(report)
    subject = prepare(network)
    with step("fold and remove residuals"):
        done = removal(subject.model, subject.example_inputs)
    if strict:
        require_none(done.kept)
    if not as_json:
        _say_cost(done, network.model)
    with step("verify in float64"):
        both = prove(subject, done.model, refold.remove_residuals)
    proof = both.exact
    timings = _time(done, subject, runtime) if measure else None
    if place is not None:
        ship(done.model, output or place, place, subject)
    folded = replace(subject, model=done.folded)
    fold = refold.remove_residuals
    write_page(page, folded, done, both, fold=fold, verb="without residuals")
    if as_json:
        _print_record(done, proof, timings, output)
        return
    say(f"equal: largest error {proof.max_rel_error:.1e} in float64")
    say(f"residuals removed: {len(done.steps)}", *kept_lines(done.kept))
    if timings is not None:
        say_block(f"{timings}\n{SLOWER}")
    else:
        note(SLOWER)


def _say_cost(done: Removal, model: str) -> None:
    before, after = size_of(done.folded, done.cost_before), size_of(done.model, done.cost_after)
    columns = ["", "with residuals, folded", "without"]
    table(f"{model} without residuals", columns, size_rows(before, after))
    growth = after.parameters / max(1, before.parameters)
    if growth > STEEP:
        note(
            f"warning: {growth:.0f} times the parameters: a dense convolution inside a bottleneck "
            "carries every channel of the block; a grouped one would not"
        )


def _time(done: Removal, subject: Subject, runtime: list[str] | None) -> Any:
    import refold

    with step("time"):
        return refold.benchmark(
            {"with residuals": done.folded, "without": done.model},
            subject.example_inputs,
            runtimes=tuple(runtime or ("eager",)),
        )


def _print_record(done: Removal, proof: Equivalence, timings: Any, output: Path | None) -> None:
    before, after = size_of(done.folded, done.cost_before), size_of(done.model, done.cost_after)
    outcome: dict[str, Any] = {"output": None if output is None else str(output)}
    outcome["proof"] = proof.to_dict()
    outcome["timings"] = None if timings is None else timings.to_dict()
    print_json(outcome | record(done, before, after))
