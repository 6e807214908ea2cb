"""`refold report`: one HTML page that shows a network before and after folding."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from refold.cli import options
from refold.cli.console import note, say, step
from refold.cli.onnx_model import check_options, is_onnx
from refold.cli.page import check_page, write_page
from refold.cli.proof import prove, say_proof
from refold.cli.subject import prepare
from refold.cli.summary import kept_lines
from refold.errors import InputError

Out = Annotated[
    Path, typer.Option("-o", "--output", metavar="OUT", help="Page to write, such as report.html.")
]
Measure = Annotated[
    bool, typer.Option("--measure", help="Also time both networks in torch, step by step.")
]


def report(
    output: Out,
    network: options.Network,
    allow_growth: options.AllowGrowth = False,
    measure: Measure = False,
) -> None:
    """Write an HTML page that shows a network before and after folding, layer by layer.

    An .onnx file, whoever wrote it, is shown as the graph that it holds.

    One file, which needs no network: the branches of every layer with their kernels, its error in
    float64, what stayed and why, cost by stage, ranges of the weights.
    """
    import refold

    place = check_page(output)
    if is_onnx(network.model):
        report_file(network, output, locals())
        return
    subject = prepare(network)
    with step("fold"):
        plan = refold.plan(subject.model, subject.example_inputs, allow_growth=allow_growth)
    fold = partial(refold.reparameterize, allow_growth=allow_growth)
    with step("verify in float64"):
        proof = prove(subject, plan.model, fold)
    write_page(place, subject, plan, proof, fold=fold, measure=measure)
    say(plan.summary(), *kept_lines(plan.kept))
    say_proof(proof)


def report_file(network: options.Network, output: Path, given: dict[str, Any]) -> None:
    """Write the page of an .onnx file.

    Args:
        network: names the file.
        output: the page.
        given: the other arguments of the command by name.

    Raises:
        InputError: when an option needs the network in PyTorch.
    """
    check_options(network, given)
    if given["measure"]:
        raise InputError(
            f"--measure times a network in PyTorch, and {network.model} is a file: "
            "leave it out, or time it with refold bench"
        )
    from refold.reporting import report_onnx

    with step("fold, run both files, and draw"):
        account = report_onnx(network.model, output, allow_growth=given["allow_growth"])
    say(account.summary(), *kept_lines(account.kept))
    note(f"wrote {output} ({output.stat().st_size / 2**10:.0f} KiB): open it in a browser")
