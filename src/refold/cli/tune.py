"""`refold tune`: the fastest of a network's exact forms in a runtime, found by measuring."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refold.cli import options
from refold.cli.bench import A_RUNTIME, known_runtimes
from refold.cli.console import note, print_json, say_block, step
from refold.cli.destination import check_destination, sources_of
from refold.cli.subject import prepare

Out = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="FILE", help="Write the choices, for convert --tuning."),
]
RuntimeOption = Annotated[
    str, typer.Option("--runtime", callback=known_runtimes, help=f"{A_RUNTIME}.")
]
Rounds = Annotated[
    int, typer.Option("--rounds", min=1, help="How many times each of two forms is timed, in turn.")
]
Trials = Annotated[
    int,
    typer.Option("--trials", min=0, help="How many other forms of single parts to try."),
]


def tune(
    *,
    output: Out = None,
    network: options.Network,
    runtime: RuntimeOption = "eager",
    rounds: Rounds = 30,
    trials: Trials = 12,
    as_json: options.Json = False,
) -> None:
    """Measure the exact forms of a network in a runtime, and keep what is faster.

    The plain fold stays unless it is shown to be slower than the unfolded network. Other choices
    (branches left apart, merges that need more multiply-adds, no residuals, channels last) must be
    faster by more than the noise.
    """
    import refold
    from refold.tuning import save_tuning

    place = None if output is None else check_destination(output, (".json",), sources_of(network))
    subject = prepare(network)
    with step(f"tune for {runtime}"):
        found = refold.tune(
            subject.model, subject.example_inputs, runtime=runtime, rounds=rounds, trials=trials
        )
    if place is not None:
        save_tuning(found, place)
    if as_json:
        print_json(found.to_dict())
        return
    say_block(str(found))
    if output is not None:
        command = f"refold convert {network.model} --tuning {output}"
        note(f"wrote {output}; to make these choices again: {command}")
