"""`refold inspect`: what would be folded, what is refused, and why."""

from __future__ import annotations

from typing import Annotated

import typer

from refold.cli import options
from refold.cli.console import print_json, say_block, step
from refold.cli.subject import prepare


def inspect(
    model: options.Model,
    checkpoint: options.Checkpoint = None,
    weights_key: options.WeightsKey = None,
    input_size: options.InputSize = None,
    batch: options.Batch = 1,
    seed: options.Seed = 0,
    allow_growth: options.AllowGrowth = False,
    as_json: options.Json = False,
    fail_on_refusal: Annotated[
        bool,
        typer.Option(
            "--fail-on-refusal",
            help="Exit with 1 if a fold is refused for any reason but its cost; for CI.",
        ),
    ] = False,
) -> int:
    """Show what would be folded, what is refused, and why."""
    import refold

    subject = prepare(
        options.Source(model, checkpoint, input_size, batch, seed, weights_key=weights_key)
    )
    with step("plan"):
        plan = refold.plan(subject.model, subject.example_inputs, allow_growth=allow_growth)
    if as_json:
        print_json(plan.to_dict())
    else:
        say_block(str(plan))
    # What is kept only for its cost is a choice, not a failure that CI should report.
    is_refused = any(not item.costlier for item in plan.kept)
    return 1 if fail_on_refusal and is_refused else 0
