"""Fold other people's networks and compare with what their own libraries fold.

    python benchmarks/fold_zoo.py                    the whole table (some minutes)
    python benchmarks/fold_zoo.py --only resnet18    one network
    python benchmarks/fold_zoo.py --json rows.json   the numbers as well
    python benchmarks/fold_zoo.py --before DIR       the time alone, beside another checkout

The peer is timm's `reparameterize_model` followed by torch.fx's `fuse`; for ultralytics its own
`fuse()`. Every comparison is in float64 with live norm statistics. A network passes when no norm
is left that a neighbour could take in, when it has no more convolutions and linear layers than the
peer's, when it needs no more multiply-adds than before, and when all outputs equal the original's
to 1e-9. Exit code 1 when one fails. In the table, `+3s` says that three scales stand where
multiplications and additions stood, and `+4n` that the peer leaves four norms.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from zoo.clock import FORMS, Timed, clock
from zoo.measure import TOLERANCE, Row, measure
from zoo.nets import NETS, find

_COLUMNS = (
    "network", "norms", "conv+linear", "peer", "ours", "parameters (M)", "multiply-adds (M)",
    "error", "peer's error", "s", "kept", "verdict",
)  # fmt: skip


def main(
    only: Annotated[list[str], typer.Option(help="a network's name; may be repeated")] = [],  # noqa: B006
    json_file: Annotated[
        Path | None, typer.Option("--json", help="also write the rows here")
    ] = None,
    reasons: Annotated[bool, typer.Option(help="say why the remaining norms stay")] = False,
    before: Annotated[
        Path | None, typer.Option(help="time the folds beside the refold of this checkout")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="folds of each form with --before")] = 3,
) -> None:
    """Print the table; exit 1 when a network fails."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_grad_enabled(True)
    nets = [net for name in only for net in find(name)] if only else NETS
    if not nets:
        raise typer.BadParameter(f"no such network; one of {', '.join(n.label for n in NETS)}")
    console = Console(width=None if sys.stdout.isatty() else 200)
    if before is not None:
        console.print(_times(clock(nets, before, rounds)))
        return
    progress = Console(stderr=True)
    rows: list[Row] = []
    for net in nets:
        rows.append(measure(net))
        progress.print(_line(rows[-1]), highlight=False, soft_wrap=True)
    console.print(_table(rows))
    for row in rows:
        _explain(console, row, reasons)
    if json_file is not None:
        json_file.write_text(json.dumps([row.to_dict() for row in rows], indent=1) + "\n")
    raise typer.Exit(any(row.faults for row in rows))


def _times(found: list[Timed]) -> Table:
    table = Table("network", *FORMS, title="seconds for one fold, median; times of before")
    whole = [timed for timed in found if all(timed.seconds.values())]
    for timed in whole:
        medians = {form: timed.median(form) or 0.0 for form in FORMS}
        first = medians["before"]
        cells = (f"{value:.2f} ({value / first:.2f}x)" for value in medians.values())
        table.add_row(timed.label, *cells)
    sums = {form: sum(timed.median(form) or 0.0 for timed in whole) for form in FORMS}
    cells = (f"{value:.1f} ({value / sums['before']:.2f}x)" for value in sums.values())
    table.add_section()
    table.add_row(f"all {len(whole)}", *cells)
    for timed in found:
        if timed not in whole:
            failed = [form for form in FORMS if not timed.seconds[form]]
            table.add_row(timed.label, f"failed: {', '.join(failed)}")
    return table


def _line(row: Row) -> str:
    verdict = "; ".join(row.faults) or "pass"
    return f"{row.label} {row.norms_before}->{row.norms_after} {row.seconds:.1f}s {verdict}"


def _table(rows: list[Row]) -> Table:
    table = Table(*_COLUMNS, title=f"{len(rows)} networks, {sum(not r.faults for r in rows)} pass")
    for row in rows:
        table.add_row(
            row.label,
            f"{row.norms_before} -> {row.norms_after}" + (f" +{row.scales}s" if row.scales else ""),
            str(row.layers_before),
            f"{row.layers_peer or '-'}" + (f" +{row.peer_norms}n" if row.peer_norms else ""),
            str(row.layers_after),
            _pair(row.parameters),
            _pair(row.macs),
            f"{row.error:.0e}",
            f"{row.peer_error:.0e}",
            f"{row.seconds:.1f}",
            str(row.refusals),
            "FAIL" if row.faults else "PASS",
        )
    return table


def _pair(values: tuple[int | None, int | None]) -> str:
    said = ["?" if value is None else f"{value / 1e6:.2f}" for value in values]
    return " -> ".join(said)


def _explain(console: Console, row: Row, reasons: bool) -> None:
    for fault in row.faults:
        console.print(f"FAIL {row.label}: {fault}", highlight=False, soft_wrap=True)
    if row.peer_note:
        console.print(f"{row.label}: peer: {row.peer_note}", highlight=False, soft_wrap=True)
    if row.layers_peer and row.peer_error > TOLERANCE:
        console.print(f"{row.label}: the peer's result is wrong", highlight=False, soft_wrap=True)
    for why, count in Counter(row.stays.values()).items() if reasons else ():
        console.print(f"{row.label}: {count} norms stay: {why}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
