"""Fold small networks of other packages, of every make, and say what stays and why.

    python benchmarks/ecosystems.py                           the whole table (half an hour)
    python benchmarks/ecosystems.py --only 'transformers:*'   some of it, by pattern
    python benchmarks/ecosystems.py --json rows.json          keep the rows; run again to go on
    python benchmarks/ecosystems.py --json rows.json --page   print what docs/coverage.md holds

Every network is built from its configuration, with random weights, live norm statistics and norm
weights of both signs, and compared in float64. Each package runs in a process of its own, which
starts anew behind a network that ends it: a crash is one line of the table. Exit code 1 when a
network is wrong, crashes, or keeps a norm without a reason; a package that is not installed is
only said to be so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from zoo.guests import GUESTS
from zoo.guests.guest import Guest
from zoo.guests.page import page


def main(
    only: Annotated[list[str], typer.Option(help="a pattern of labels; may be repeated")] = [],  # noqa: B006
    json_file: Annotated[
        Path | None, typer.Option("--json", help="keep the rows here, and skip those it has")
    ] = None,
    as_page: Annotated[bool, typer.Option("--page", help="print Markdown, run nothing")] = False,
    inside: Annotated[bool, typer.Option(hidden=True, help="measure, print JSON lines")] = False,
) -> None:
    """Print a line for every network; exit 1 when one of them fails."""
    guests = [g for g in GUESTS if not only or any(fnmatch(g.label, p) for p in only)]
    if not guests:
        raise typer.BadParameter(f"no such network; one of {', '.join(g.label for g in GUESTS)}")
    if inside:
        _measure(guests)
        return
    rows: dict[str, Any] = {}
    if json_file is not None and json_file.exists():
        rows = json.loads(json_file.read_text())
    console = Console(width=None if sys.stdout.isatty() else 200)
    wanted = [] if as_page else [guest for guest in guests if guest.label not in rows]
    for _, family in groupby(wanted, key=lambda guest: guest.package):
        for row in _apart(list(family)):
            rows[row["label"]] = row
            console.print(_line(row), highlight=False, soft_wrap=True)
            if json_file is not None:
                json_file.write_text(json.dumps(rows, indent=1) + "\n")
    done = [rows[guest.label] for guest in guests if guest.label in rows]
    if as_page:
        console.print(page(done), highlight=False, soft_wrap=True, markup=False)
    raise typer.Exit(any(row["faults"] for row in done))


def _apart(guests: list[Guest]) -> Iterator[dict[str, Any]]:
    """Yield the rows of networks measured in another process; one that ends it fails."""
    left = list(guests)
    while left:
        names = [word for guest in left for word in ("--only", guest.label)]
        command = [sys.executable, "-W", "ignore", __file__, "--inside", *names]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith('{"label"'):
                    left.pop(0)
                    yield json.loads(line)
        if left:
            fault = f"it ended the process with exit code {process.returncode}"
            yield {"label": left.pop(0).label, "faults": [fault]}


def _measure(guests: list[Guest]) -> None:
    import logging

    import torch

    from zoo.guests.row import measure

    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    for guest in guests:
        print(json.dumps(measure(guest).to_dict()), flush=True)


def _line(row: dict[str, Any]) -> str:
    label = row["label"]
    if row.get("missing"):
        return f"{label} not installed: {row['missing']}"
    if "norms" not in row:
        return f"{label} FAIL {'; '.join(row['faults'])}"
    verdict = f"FAIL {'; '.join(row['faults'])}" if row["faults"] else "pass"
    norms, layers = (" -> ".join(map(str, row[key])) for key in ("norms", "layers"))
    return (
        f"{label} {row['parts']} parts, norms {norms}, layers {layers}, error {row['error']:.0e}, "
        f"{row['seconds']:.1f} s {verdict}"
    )


if __name__ == "__main__":
    typer.run(main)
