"""`refold report`: one HTML page that shows a network before and after folding."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from refold.cli import options
from refold.cli.console import say, step
from refold.cli.page import check_page, write_page
from refold.cli.proof import prove, say_proof
from refold.cli.subject import prepare
from refold.cli.summary import kept_lines

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

    One file, which needs no network: the branches of every layer with their kernels, its error in
    float64, what stayed and why, cost by stage, ranges of the weights.
    """
    import refold

    place = check_page(output)
    subject = prepare(network)
    with step("fold"):
        plan = refold.plan(subject.model, subject.example_inputs, allow_growth=allow_growth)
    fold = partial(refold.reparameterize, allow_growth=allow_growth)
    with step("verify in float64"):
        proof = prove(subject, plan.model, fold)
    write_page(place, subject, plan, proof, fold=fold, measure=measure)
    say(plan.summary(), *kept_lines(plan.kept))
    say_proof(proof)
