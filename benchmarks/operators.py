"""Count the operators that a converted network still runs, kind by kind, against its own library's.

    python benchmarks/operators.py                     the whole table (half an hour)
    python benchmarks/operators.py --only levit_128s   one network
    python benchmarks/operators.py --json rows.json    the counts by kind as well

Counted in the graph of torch.export, in float32 with live norm statistics: before, after timm's
`reparameterize_model` followed by torch.fx's `fuse` (for ultralytics its own `fuse()`), and after
`refold.reparameterize`. A network passes when no kind of operator is left more often than the peer
leaves it. Exit code 1 when one fails. A dash says that torch.export takes no such network.
"""

from __future__ import annotations

import gc
import json
import logging
import sys
import warnings
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

import refold
from zoo.live import enliven
from zoo.nets import NETS, Net, find
from zoo.operators import above, count_operators
from zoo.peers import dropped_by_peer, first_words, fold_with_peer


@dataclass
class Row:
    """The operators of one network, by kind; `above` is empty when it passes."""

    label: str
    before: dict[str, int] = field(default_factory=dict[str, int])
    peer: dict[str, int] = field(default_factory=dict[str, int])
    ours: dict[str, int] = field(default_factory=dict[str, int])
    above: dict[str, int] = field(default_factory=dict[str, int])
    note: str = ""


def main(
    only: Annotated[list[str], typer.Option(help="a network's name; may be repeated")] = [],  # noqa: B006
    json_file: Annotated[
        Path | None, typer.Option("--json", help="also write the rows here")
    ] = None,
) -> None:
    """Print the table; exit 1 when a network runs more operators of a kind than the peer's."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    nets = [net for name in only for net in find(name)] if only else NETS
    if not nets:
        raise typer.BadParameter(f"no such network; one of {', '.join(n.label for n in NETS)}")
    progress = Console(stderr=True)
    rows: list[Row] = []
    for net in nets:
        rows.append(measure(net))
        progress.print(_line(rows[-1]), highlight=False, soft_wrap=True)
        if json_file is not None:
            json_file.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    Console(width=None if sys.stdout.isatty() else 160).print(_table(rows))
    raise typer.Exit(any(row.above for row in rows))


def measure(net: Net) -> Row:
    """Count the operators of one network in its three forms."""
    row = Row(net.label)
    example = tuple(value.float() for value in net.example())
    try:
        model = enliven(net.build(), example)
        row.before = _count(model, example)
        row.ours = _count(refold.reparameterize(model, example), example)
        peer, _ = fold_with_peer(model, net.source)
        row.peer = _count(peer, example)
        dropped = dropped_by_peer(model, peer) if net.source == "ultralytics" else ()
    except Exception as error:  # a network that cannot be exported has no row of numbers
        row.note = first_words(error)
        return row
    if dropped:  # it then answers less than the network did
        row.note = f"the peer leaves out {', '.join(dropped)}"
    else:
        row.above = above(Counter(row.ours), Counter(row.peer))
    return row


def _count(model: nn.Module, example: tuple[Any, ...]) -> dict[str, int]:
    torch.manual_seed(0)
    found = dict(count_operators(model, example))
    gc.collect()  # an exported graph goes only with its cycles
    return found


def _line(row: Row) -> str:
    counts = " -> ".join(str(sum(c.values())) for c in (row.before, row.peer, row.ours))
    return f"{row.label} {counts} {row.note or row.above or 'pass'}"


def _table(rows: list[Row]) -> Table:
    counted = [row for row in rows if not row.note]
    passed = sum(not row.above for row in counted)
    table = Table(title=f"{len(counted)} networks counted, {passed} pass")
    for name in ("network", "before", "peer", "ours", "above the peer"):
        table.add_column(name, justify="left" if name in ("network", "above the peer") else "right")
    for row in rows:
        more = ", ".join(f"{kind} +{n}" for kind, n in sorted(row.above.items()))
        totals = (str(sum(c.values()) or "-") for c in (row.before, row.peer, row.ours))
        table.add_row(row.label, *totals, row.note or more)
    return table


if __name__ == "__main__":
    typer.run(main)
