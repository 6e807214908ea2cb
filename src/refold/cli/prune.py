"""`refold prune`: the least important channels go; what that saves, and the proof."""

from __future__ import annotations

from dataclasses import asdict, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refold.cli import options
from refold.cli.bench import Measure, measured_in
from refold.cli.console import count, note, print_json, say, say_block, step, table
from refold.cli.destination import check_destination, sources_of
from refold.cli.onnx_model import is_onnx
from refold.cli.onnx_passes import UNTUNED, nothing_dropped, prune_file
from refold.cli.page import check_page, write_page
from refold.cli.proof import prove
from refold.cli.shipping import ship, ship_origin
from refold.cli.subject import Subject, prepare
from refold.cli.summary import kept_lines
from refold.cli.then_train import Further, judge_unpruned, plan_training, train_on
from refold.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from refold.bench import BenchmarkTable
    from refold.equivalence import Proof
    from refold.pruning import Pruning
    from refold.sources.pruned import Origin


class Importance(StrEnum):
    """What a channel is worth."""

    bn = "bn"
    l1 = "l1"


Ratio = Annotated[
    float | None,
    typer.Option("--ratio", help="Share of all removable channels to drop, such as 0.5."),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        "--threshold", help="Instead of --ratio: drop channels of at most this importance."
    ),
]
Macs = Annotated[
    float | None,
    typer.Option(
        "--macs", help="Instead of --ratio: multiply-adds to keep, a share (0.5) or a number."
    ),
]
Params = Annotated[
    float | None,
    typer.Option(
        "--params", help="Instead of --ratio: parameters to keep, a share (0.5) or a number."
    ),
]
Latency = Annotated[
    float | None,
    typer.Option(
        "--latency",
        help="Instead of --ratio: share of the folded network's time to keep, such as 0.6, as "
        "--runtime measures it (the first, where several are given; all of them time the result).",
    ),
]
RoundTo = Annotated[
    int,
    typer.Option(
        "--round-to",
        min=1,
        help="Each layer keeps a multiple of this many channels, which runs faster (8: of 16 in "
        "layers of 64 or more); 1: any number.",
    ),
]
By = Annotated[
    Importance | None,
    typer.Option(
        "--importance",
        help="bn: the scale of the norm that made the channel; l1: the L1 norm of its filter, over "
        "the mean of its layer. Default: bn; l1 for an .onnx file.",
    ),
]
Floor = Annotated[
    str,
    typer.Option(
        "--floor",
        help="What every layer keeps at least: a number of channels, or a share such as 0.1.",
    ),
]
Remove = Annotated[
    bool,
    typer.Option(
        "--remove-residuals",
        help="Remove residuals first, so that channels tied together by a sum can go too.",
    ),
]
RuntimeOption = Annotated[list[str] | None, measured_in("onnxruntime")]


def prune(
    *,
    ratio: Ratio = None,
    threshold: Threshold = None,
    macs: Macs = None,
    params: Params = None,
    latency: Latency = None,
    importance: By = None,
    floor: Floor = "1",
    round_to: RoundTo = 8,
    remove_residuals: Remove = False,
    measure: Measure = False,
    runtime: RuntimeOption = None,
    output: options.Output = None,
    network: options.Network,
    further: Further,
    report: options.Report = None,
    as_json: options.Json = False,
) -> None:
    """Drop the least important channels; print what is saved, and verify against masks.

    An .onnx file, whoever wrote it, becomes an .onnx or .xml file with fewer channels.

    With --then-train the pruned network trains on: one folder, one summary. Where it is stopped,
    refold train -o RUN --resume continues.
    """
    from refold.pruning import drop_dead_channels, pruning

    targets = _required(ratio, threshold, macs, params, latency)
    least: dict[str, Any] = {
        "floor": parse_floor(floor), "round_to": round_to, "remove_residuals": remove_residuals,
    }  # fmt: skip
    if is_onnx(network.model):
        prune_file(network, output, locals() | vars(further), targets | least)
        return
    course, network = plan_training(further, network, output) or (None, network)
    sources = sources_of(network)
    place = None if output is None or course else check_destination(output, sources=sources)
    is_timed = _is_timed(runtime, measure=measure or latency is not None)
    page, subject = check_page(report), prepare(network)
    judged = None if course is None else judge_unpruned(subject, course)
    with step("choose and drop channels"):
        done = pruning(
            subject.model, subject.example_inputs, **targets, **least,
            clock=None if latency is None else _clock(subject, runtime),
            importance=(importance or Importance.bn).value,
        )  # fmt: skip
    origin = origin_of(done, network, subject)
    if not as_json:
        _say_cost(done, network.model, targets | least)
    with step("verify in float64"):
        fold = partial(drop_dead_channels, round_to=round_to)
        masked = replace(subject, model=done.masked)
        proof = prove(masked, done.model, fold)
    timings = _time(done, subject, runtime) if is_timed else None
    if place is not None:
        ship(done.model, output or place, place, subject)
        ship_origin(done.model, place, origin)
    write_page(page, masked, done, proof, fold=fold, verb="pruned")
    if not as_json:
        _say_proof(done, proof, timings)
    if course is not None and judged is not None:
        train_on(done, origin, course, judged, as_json=as_json)
    elif as_json:
        _print_record(done, proof, timings, output)
    elif done.steps:
        note(UNTUNED)


def _required(
    ratio: float | None, threshold: float | None, macs: float | None, params: float | None,
    latency: float | None,
) -> dict[str, float | None]:  # fmt: skip
    targets = {
        "ratio": ratio, "threshold": threshold, "macs": macs, "params": params, "latency": latency,
    }  # fmt: skip
    if all(target is None for target in targets.values()):
        raise InputError(
            "pass --ratio, --threshold, --macs, --params or --latency, such as --ratio 0.5"
        )
    return targets


def _is_timed(runtime: list[str] | None, *, measure: bool) -> bool:
    if runtime and not measure:
        raise InputError("--runtime says where --measure and --latency time: pass one of them")
    return measure


def _clock(subject: Subject, runtime: list[str] | None) -> Callable[[nn.Module, nn.Module], float]:
    from refold.bench import share_of_time

    return share_of_time(subject.example_inputs, (runtime or ["onnxruntime"])[0])


def _time(done: Pruning, subject: Subject, runtime: list[str] | None) -> BenchmarkTable:
    import refold

    with step("time"):
        return refold.benchmark(
            {"unpruned": done.masked, "pruned": done.model},
            subject.example_inputs,
            runtimes=tuple(runtime or ("onnxruntime",)),
        )


def origin_of(done: Pruning, network: options.Network, subject: Subject) -> Origin:
    """Return what a pruned network comes from, as its file says it."""
    from refold.sources.pruned import Narrowing, next_origin

    sizes = tuple(tuple(x.shape[1:]) for x in subject.example_inputs)
    return next_origin(network.model, sizes, Narrowing(done.gone, done.chained), subject.options)


def parse_floor(text: str) -> int | float:
    """Return a number of channels, or a share of them.

    >>> parse_floor("8"), parse_floor("0.1")
    (8, 0.1)
    """
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--floor {text!r} is neither a number of channels nor a share") from None


def _say_cost(done: Pruning, name: str, asked: dict[str, Any]) -> None:
    costs = [("folded", done.cost_before), ("pruned", done.cost_after)]
    if done.cost_plain != done.cost_before:
        costs.insert(1, ("without residuals", done.cost_plain))
    rows = [
        ["parameters", *(count(cost.parameters) for _, cost in costs)],
        ["multiply-adds", *(count(cost.macs) for _, cost in costs)],
    ]
    table(f"{name} pruned", ["", *(title for title, _ in costs)], rows)
    if not done.steps:
        say(nothing_dropped(asked))
        return
    rows = [[x.where, str(x.before), str(x.after)] for x in done.steps]
    table("channels", ["layer", "before", "after"], rows)


def _say_proof(done: Pruning, proof: Proof, timings: BenchmarkTable | None) -> None:
    error = proof.exact.max_rel_error
    say(f"equal to the network with those channels masked: largest error {error:.1e} in float64")
    say(*kept_lines(done.kept))
    if timings is not None:
        say_block(str(timings))
        for row in timings.rows:
            if row.interval is not None and row.interval[0] <= 1:
                note(f"warning: in {row.runtime} the pruned network is not measurably faster")


def _print_record(
    done: Pruning, proof: Proof, timings: BenchmarkTable | None, output: Path | None
) -> None:
    outcome: dict[str, Any] = {"output": None if output is None else str(output)}
    costs = {"before": done.cost_before, "plain": done.cost_plain, "after": done.cost_after}
    outcome |= {title: asdict(cost) for title, cost in costs.items()}
    account = done.to_dict()
    outcome |= {"steps": account["steps"], "kept": account["kept"], "silenced": done.silenced}
    outcome["proof"] = proof.exact.to_dict()
    outcome["timings"] = None if timings is None else timings.to_dict()
    print_json(outcome)
