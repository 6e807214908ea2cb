"""What tuning gains: each network unfolded, folded and tuned, in each runtime, timed in turn.

    python benchmarks/tune.py [--runtime eager] [--rounds 20] [--size 96] [MODEL ...]

One table: the choices, and how many times as fast as the unfolded network the plain fold and the
tuned form are, with 95 % intervals. The last timing is a fresh one: what won by chance does not
show there. Each row is also printed to standard error as it is done; a runtime that
writes files takes half a minute to two minutes for each.
"""

from __future__ import annotations

import argparse

import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import refold
from refold.tuning import Tuning
from zoo.live import enliven

_MODELS = ("mobileone_s0", "repvgg_a0", "resnet18", "repghostnet_100")


def main() -> None:
    """Tune every network in every runtime and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("models", nargs="*", default=_MODELS, metavar="MODEL")
    parser.add_argument("--runtime", action="append", help="repeat for several; default: eager")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--size", type=int, default=96)
    options = parser.parse_args()
    table = Table(title=f"times as fast as the unfolded network, {options.size} px, batch 1")
    for column in ("network", "runtime", "folded", "tuned", "choices"):
        table.add_column(column)
    machine = ""
    for name in options.models:
        for runtime in options.runtime or ["eager"]:
            machine = add_row(table, name, runtime, options)
    console = Console(width=160)
    console.print(table)
    console.print(machine)


def add_row(table: Table, name: str, runtime: str, options: argparse.Namespace) -> str:
    """Tune one network in one runtime, time the forms anew, and return where that was."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, options.size, options.size)
    model = enliven(timm.create_model(name).eval(), (x,))
    found = refold.tune(model, x, runtime=runtime, rounds=options.rounds, trials=options.trials)
    folded, tuned = _timed(model, x, found, options.rounds)
    progress = Console(stderr=True, soft_wrap=True)
    progress.print(f"{name} in {runtime}: folded {folded}, tuned {tuned}, {found.choices}")
    table.add_row(name, runtime, folded, tuned, str(found.choices))
    return found.machine


def _timed(model: nn.Module, x: torch.Tensor, found: Tuning, rounds: int) -> list[str]:
    forms = {"unfolded": model, "folded": refold.reparameterize(model, x), "tuned": found.model}
    known = {name: form for name, form in forms.items() if form is not None}
    rows = refold.benchmark(known, x, (found.runtime,), rounds=rounds).rows[1:]
    return [
        f"{row.speedup.median:.2f} ({row.interval[0]:.2f} to {row.interval[1]:.2f})"
        if row.speedup and row.interval
        else row.skipped
        for row in rows
    ]


if __name__ == "__main__":
    main()
