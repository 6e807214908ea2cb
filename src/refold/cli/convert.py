"""`refold convert`: fold, prove, export, and say what changed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refold.cli import options
from refold.cli.console import print_json, say, step, table
from refold.cli.destination import check_destination, note_written, sources_of
from refold.cli.onnx_model import convert_onnx, is_onnx
from refold.cli.page import check_page, write_page
from refold.cli.proof import prove, say_proof
from refold.cli.shipping import Wishes, options_of, ship, ship_origin
from refold.cli.streaming import convert_streamed
from refold.cli.subject import Subject, prepare
from refold.cli.summary import kept_lines, record, size_of, size_rows, unrun_lines
from refold.cli.weights import convert_weights, is_weights
from refold.errors import InputError
from refold.sources.pruned import is_pruned, origin_of

if TYPE_CHECKING:
    from torch import nn

    from refold.equivalence import Proof
    from refold.planning import Plan

Out = Annotated[Path, options.OUTPUT]
NormEps = Annotated[
    float | None,
    typer.Option(
        "--norm-eps",
        metavar="EPS",
        min=0.0,
        help="For weights alone: eps of the norms, which the file does not store. Default: 1e-05.",
    ),
]

TuningFile = Annotated[
    Path | None,
    typer.Option("--tuning", metavar="FILE", help="Make the choices that `refold tune` wrote."),
]
Stream = Annotated[
    bool,
    typer.Option(
        "--stream",
        help="Fold a .safetensors checkpoint, or several files with an index, that need not fit "
        "into memory; OUT is a .safetensors file, or a folder for several.",
    ),
]
_NO_EPS = "--norm-eps is for a file of weights alone: a network already states the eps of its norms"


def convert(
    output: Out,
    network: options.Network,
    wishes: Wishes,
    allow_growth: options.AllowGrowth = False,
    drop_unused: options.DropUnused = False,
    tuning: TuningFile = None,
    norm_eps: NormEps = None,
    stream: Stream = False,
    report: options.Report = None,
    as_json: options.Json = False,
) -> None:
    """Fold, verify in float64, export, and print what changed.

    Instead of MODEL, a file of weights alone in a published layout (RepVGG, ACNet, DBB, MobileOne,
    RepLKNet, RepMLP, timm's) becomes one of the same layout in deploy form. An .onnx file, whoever
    wrote it, becomes an .onnx or .xml file with fewer nodes.
    """
    if stream:
        extra = (drop_unused, tuning, report, norm_eps is not None, wishes != Wishes())
        given = any(extra) or network.live_statistics is not None
        convert_streamed(network, output, allow_growth=allow_growth, given=given, as_json=as_json)
        return
    if is_weights(network.model):
        given = bool(network.checkpoint or network.input_size or report or tuning)
        file, key = Path(network.model), network.weights_key
        convert_weights(file, output, given, key, norm_eps, as_json=as_json)
        return
    if is_onnx(network.model):
        convert_onnx(network, output, locals() | vars(wishes))
        return
    from refold.exporting import require_names

    if norm_eps is not None:
        raise InputError(_NO_EPS)
    place = check_destination(output, sources=sources_of(network, tuning))
    page = check_page(report)
    asked = options_of(wishes, place)  # before minutes of work go into it
    subject = prepare(network)
    require_names(subject.model, subject.example_inputs, asked)
    wanted = {"allow_growth": allow_growth, "drop_unused": drop_unused}
    make, again = _makers(tuning, subject, wanted)
    with step("fold"):
        plan = make(subject.model, subject.example_inputs)
        folded = plan.apply()
    with step("verify in float64"):
        proof = prove(subject, folded, again)
    pruned = origin_of(Path(network.model)) if is_pruned(network.model) else None
    done = ship(folded, output, place, subject, wishes=wishes, provenance=_origin(plan, proof))
    if pruned is not None:
        ship_origin(folded, place, pruned)
    write_page(page, subject, plan, proof, fold=again)
    before, after = size_of(subject.model, plan.cost_before), size_of(folded, plan.cost_after)
    if as_json:
        outcome = {"output": str(output), "proof": proof.to_dict()}
        outcome |= {"inputs": dict(done.shapes), "notes": list(done.notes)}
        print_json(outcome | record(plan, before, after) | {"unrun": list(plan.unrun)})
        return
    table(f"{network.model} -> {output}", ["", "before", "after"], size_rows(before, after))
    say(f"folds: {len(plan.steps)}", *kept_lines(plan.kept), *unrun_lines(plan))
    say_proof(proof)
    note_written(output, place)


def _makers(
    tuning: Path | None, subject: Subject, wanted: dict[str, bool]
) -> tuple[Callable[..., Plan], Callable[..., nn.Module]]:
    """Return what plans and what makes a fold, by the choices of a tuning file where there is one.

    Raises:
        InputError: when the file is for another network, or options speak against it.
    """
    import refold

    if tuning is None:
        return partial(refold.plan, **wanted), partial(refold.reparameterize, **wanted)
    from refold.tuning import load_tuning, tuned

    if any(wanted.values()):
        raise InputError(
            "--tuning already decides which merges are made: drop --allow-growth and --drop-unused"
        )
    make = partial(tuned, choices=load_tuning(tuning, subject.model).choices)

    def again(model: nn.Module, example_inputs: object) -> nn.Module:
        return make(model, example_inputs).model

    return make, again


def _origin(plan: Plan, proof: Proof) -> dict[str, str]:
    """Return what the file says of how it was made."""
    error = f"{proof.exact.max_rel_error:.1e} in float64"
    return {"folds": str(len(plan.steps)), "kept": str(len(plan.kept)), "error": error}
