"""Time what one deploys: a folded network, what its peers make of it, and the plain net by hand.

    python benchmarks/deploy.py                          8 networks on 4 runtimes (an hour or two)
    python benchmarks/deploy.py --only repvgg_a0         one of them
    python benchmarks/deploy.py --runtime openvino --rounds 50 --json rows.json

Peers: timm's `reparameterize_model`, the same followed by torch.fx's `fuse`, and the blocks' own
`switch_to_deploy`; `plain` is our network written in its plain form, where the registry has it. All
forms of a network are timed in turn in one run, on one thread and one image, with live norm
statistics; figures are medians, and ratios those of the same round with a 95 % interval. "ours
against" says how many times as fast our form is. A dash: the peer changes nothing, or has none.
"""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import nn

import refold
from refold.bench import BenchmarkTable
from refold.bench.table import NO_DIFFERENCE, BenchmarkRow
from refold.cli.peers import peers_of
from refold.cli.subject import Subject
from refold.table import render
from zoo.live import enliven

NETS = {
    "repvgg_a0": 224,
    "mobileone_s1": 224,
    "dbb_resnet18": 224,
    "rmnext_26x3_32": 32,
    "timm:fastvit_t8": 256,
    "timm:repvit_m0_9": 224,
    "timm:levit_128s": 224,
    "timm:hgnetv2_b0": 224,
}
RUNTIMES = ("eager", "onnxruntime", "openvino", "inductor")
PEERS = ("timm", "timm + fx.fuse", "switch_to_deploy", "plain")


@dataclass(frozen=True)
class Deployed:
    """The forms of one network, timed in turn."""

    name: str
    table: BenchmarkTable
    missing: list[str]


def main(
    only: Annotated[list[str], typer.Option(help="a network's name; may be repeated")] = [],  # noqa: B006
    runtime: Annotated[list[str], typer.Option(help="may be repeated")] = list(RUNTIMES),  # noqa: B006
    rounds: Annotated[int, typer.Option(min=2, help="how often each form is timed")] = 20,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="also write every figure here")
    ] = None,
) -> None:
    """Print the table of all networks and runtimes."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    unknown = [name for name in only if name not in NETS]
    if unknown:
        raise typer.BadParameter(f"no such network: {unknown[0]}; one of {', '.join(NETS)}")
    progress, done = Console(stderr=True), list[Deployed]()
    for name in only or NETS:
        done.append(deployed(name, tuple(runtime), rounds))
        progress.print(f"{name}\n{done[-1].table}", highlight=False, soft_wrap=True)
        for reason in done[-1].missing:
            progress.print(f"  {reason}", highlight=False, soft_wrap=True)
        if json_file is not None:
            records = {found.name: found.table.to_dict() for found in done}
            json_file.write_text(json.dumps(records, indent=1) + "\n")
    head = ("network", "runtime", "before ms", "ours ms", *(f"ours against {p}" for p in PEERS))
    lines = [line for found in done for line in _lines(found)]
    sys.stdout.write(render(head, lines) + "\n")
    sys.stdout.write(f"{rounds} rounds in turn; {done[-1].table.machine}\n")


def deployed(name: str, runtimes: tuple[str, ...], rounds: int) -> Deployed:
    """Make every form of one network and time them in turn."""
    subject = _subject(name)
    others, missing = peers_of(subject)
    # Ours comes first: the ratios of a table are against its first form, round by round.
    ours = refold.reparameterize(subject.model, subject.example_inputs)
    forms: dict[str, nn.Module] = {"ours": ours, "before": subject.model, **others}
    table = refold.benchmark(forms, subject.example_inputs, runtimes, rounds=rounds)
    return Deployed(name, table, missing)


def _subject(name: str) -> Subject:
    torch.manual_seed(0)
    example = (torch.randn(1, 3, NETS[name], NETS[name]),)
    source, _, last = name.rpartition(":")
    if source:
        import timm

        model: nn.Module = timm.create_model(last)
    else:
        model = refold.create_model(name)
    return Subject(name, enliven(model.eval(), example), example)


def _lines(found: Deployed) -> list[tuple[str, ...]]:
    runtimes = dict.fromkeys(row.runtime for row in found.table.rows)
    return [_line(found, runtime) for runtime in runtimes]


def _line(found: Deployed, runtime: str) -> tuple[str, ...]:
    rows = {row.model: row for row in found.table.rows if row.runtime == runtime}
    cells = [_ratio(rows.get(peer)) for peer in PEERS]
    return found.name, runtime, _time(rows.get("before")), _time(rows.get("ours")), *cells


def _time(row: BenchmarkRow | None) -> str:
    spread = None if row is None else row.milliseconds
    if spread is None:
        return "-"
    return f"{spread.median:.3g} ({spread.low:.3g}-{spread.high:.3g})"


def _ratio(row: BenchmarkRow | None) -> str:
    """Return how many times as fast ours is: the inverse of the peer's ratio to it."""
    if row is None or row.speedup is None or row.interval is None:
        return "-"
    low, high = 1 / row.interval[1], 1 / row.interval[0]
    sure = f" {NO_DIFFERENCE}" if row.verdict == NO_DIFFERENCE else ""
    return f"{1 / row.speedup.median:.2f} ({low:.2f}-{high:.2f}){sure}"


if __name__ == "__main__":
    typer.run(main)
