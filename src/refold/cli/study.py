"""`refold study`: the articles' comparisons at any scale."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refold.cli import options
from refold.cli.console import note, say, say_block

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="activations, branches, depth, manifold, mobile, pruning, ratio, repmlp or shortcuts.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FOLDER",
        help="Folder. Default: study-NAME. An unfinished study in it continues.",
    ),
]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="Runs of each variant.")]
Jobs = Annotated[
    int, typer.Option("--jobs", min=1, help="Runs in parallel; each gets its share of the cores.")
]
Data = Annotated[
    str | None, typer.Option("--data", metavar="DIR", help="Images. Default: the digits.")
]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="VARIANT", help="Only this variant; repeatable."),
]
Epochs = Annotated[
    int | None, typer.Option("--epochs", min=1, help="Passes over the images, of every run.")
]


def study(
    name: Name,
    output: Output = None,
    seeds: Seeds = 3,
    jobs: Jobs = 1,
    data: Data = None,
    only: Only = None,
    epochs: Epochs = None,
    changes: options.Changes = None,
) -> None:
    """Train the variants of an article's comparison with several seeds; print and plot them.

    A study that was stopped continues where it left off.
    """
    from refold.cli.progress import make_reporter
    from refold.training import study as run
    from refold.training.recipes.cookbook import parse_change

    every = dict(map(parse_change, changes or []))
    if epochs is not None:
        every["epochs"] = epochs
    report = run(
        name, output or Path(f"study-{name}"), seeds=range(seeds), data=data,
        changes=every, only=only or (), jobs=jobs,
        reporter=make_reporter(),
    )  # fmt: skip
    say(report.title)
    say_block(str(report))
    say(*report.legend())
    note(f"the table is in {report.path}, the plot and the numbers beside it")
