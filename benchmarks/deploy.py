"""Time what one deploys: a folded network, what its peers make of it, and the plain net by hand.

    python benchmarks/deploy.py                          9 networks on 4 runtimes (some hours)
    python benchmarks/deploy.py --only repvgg_a0         one of them
    python benchmarks/deploy.py --runtime openvino --rounds 50 --json rows.json

Peers: timm's `reparameterize_model`, the same followed by torch.fx's `fuse`, and the blocks' own
`switch_to_deploy`; `plain` is our network written in its plain form, where the registry has it. All
forms of a network are timed in turn in one process, on one thread and one image, with live norm
statistics. Where weights happen to lie in memory makes the very same graph faster or slower by 1
to 2 % for as long as a process lives; so every network is built and timed in several processes,
another form first in each. "ours against" says how many times as fast our form is: the median of
the processes, and the 95 % interval in which it lies. A dash: the peer changes nothing, or has
none.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import nn

import refold
from refold.bench.table import interval
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
    "timm:mobileone_s1": 224,
    "timm:repvit_m0_9": 224,
    "timm:levit_128s": 224,
    "timm:hgnetv2_b0": 224,
}
RUNTIMES = ("eager", "onnxruntime", "openvino", "inductor")
PEERS = ("timm", "timm + fx.fuse", "switch_to_deploy", "plain")


@dataclass(frozen=True)
class Measured:
    """What one process measured of one network.

    Args:
        name: of the network.
        times: milliseconds by runtime and form, each the median of the rounds.
        missing: why a peer has no form.
        machine: where.
    """

    name: str
    times: dict[str, dict[str, float]]
    missing: list[str]
    machine: str


def main(
    only: Annotated[list[str], typer.Option(help="a network's name; may be repeated")] = [],  # noqa: B006
    runtime: Annotated[list[str], typer.Option(help="may be repeated")] = list(RUNTIMES),  # noqa: B006
    rounds: Annotated[int, typer.Option(min=2, help="how often a process times each form")] = 12,
    processes: Annotated[int, typer.Option(min=1, help="how many, one after the other")] = 5,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="also write every figure here")
    ] = None,
) -> None:
    """Print the table of all networks and runtimes."""
    unknown = [name for name in only if name not in NETS]
    if unknown:
        raise typer.BadParameter(f"no such network: {unknown[0]}; one of {', '.join(NETS)}")
    progress, done = Console(stderr=True), list[Measured]()
    lines = list[tuple[str, ...]]()
    for name in only or NETS:
        mine = list[Measured]()
        for turn in range(processes):
            mine.append(_in_a_process(name, tuple(runtime), rounds, turn))
            progress.print(f"{name} {turn + 1}/{processes} {mine[-1].times}", highlight=False)
        lines += _lines(mine)
        done += mine
        for reason in mine[0].missing:
            progress.print(f"  {reason}", highlight=False, soft_wrap=True)
        if json_file is not None:
            json_file.write_text(json.dumps([asdict(found) for found in done], indent=1) + "\n")
    head = ("network", "runtime", "before ms", "ours ms", *(f"ours against {p}" for p in PEERS))
    sys.stdout.write(render(head, lines) + "\n")
    sys.stdout.write(f"{processes} processes of {rounds} rounds; {done[-1].machine}\n")


def _in_a_process(name: str, runtimes: tuple[str, ...], rounds: int, turn: int) -> Measured:
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawning) as pool:
        return pool.submit(measured, name, runtimes, rounds, turn).result()


def measured(name: str, runtimes: tuple[str, ...], rounds: int, turn: int) -> Measured:
    """Make every form of a network and time them in turn, beginning with the turn-th one."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    subject = _subject(name)
    others, missing = peers_of(subject)
    ours = refold.reparameterize(subject.model, subject.example_inputs)
    forms = list({"ours": ours, "before": subject.model, **others}.items())
    first = turn % len(forms)
    table = refold.benchmark(
        dict(forms[first:] + forms[:first]), subject.example_inputs, runtimes, rounds=rounds
    )
    times: dict[str, dict[str, float]] = {runtime: {} for runtime in runtimes}
    for row in table.rows:
        if row.milliseconds is not None:
            times[row.runtime][row.model] = row.milliseconds.median
    return Measured(name, times, missing, str(table.machine))


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


def _lines(found: list[Measured]) -> list[tuple[str, ...]]:
    return [_line(found[0].name, runtime, [one.times[runtime] for one in found])
            for runtime in found[0].times]  # fmt: skip


def _line(name: str, runtime: str, times: list[dict[str, float]]) -> tuple[str, ...]:
    cells = [_ratio(times, peer) for peer in PEERS]
    return name, runtime, _time(times, "before"), _time(times, "ours"), *cells


def _time(times: list[dict[str, float]], form: str) -> str:
    values = [one[form] for one in times if form in one]
    if not values:
        return "-"
    return f"{median(values):.3g} ({min(values):.3g}-{max(values):.3g})"


def _ratio(times: list[dict[str, float]], peer: str) -> str:
    """Return how many times as fast ours is, in the median process."""
    ratios = [one[peer] / one["ours"] for one in times if peer in one and "ours" in one]
    if not ratios:
        return "-"
    low, high = interval(ratios)
    return f"{median(ratios):.2f} ({low:.2f}-{high:.2f})"


if __name__ == "__main__":
    typer.run(main)
