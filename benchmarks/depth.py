"""How the cost of folding grows with depth and with size, and what a larger network would cost.

    python benchmarks/depth.py [--blocks 100 300 1000 3000] [--chain 10000]
                               [--widths 256 512 1024 2048] [--rounds 3] [--check]

Blocks are RepVGG's in one `nn.Sequential`: 8 channels wide and many, or few and wide. The chain is
1x1 convolutions with norms and ReLUs. Each fold is a process of its own with an example of 8 x 8
pixels, after a small one that fills the caches; rounds alternate between rows. `--check` runs both
forms on numbers as well, as
`reparameterize` does by default. The last lines fit seconds = a + b blocks + c parameters to the
rows of RepVGG and say what that gives for a network of 10 billion parameters.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import refold
from refold.blocks import RepVGGBlock

_NARROW, _FEW = 8, 8
_CHAIN, _REPVGG = "chain of layers", "RepVGG blocks"
_LARGE = 10_000_000_000, 500  # parameters and blocks of the network that is only reckoned

Row = tuple[str, int, int]  # what, how many, how wide
Runs = list[dict[str, float]]


def main() -> None:
    """Compare depths, or (with --child) fold one network."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--blocks", type=int, nargs="+", default=[100, 300, 1000, 3000])
    parser.add_argument("--chain", type=int, default=10_000)
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--child", nargs=3, metavar=("KIND", "DEPTH", "WIDTH"))
    options = parser.parse_args()
    if options.child:
        kind, depth, width = options.child
        figures = fold((kind, int(depth), int(width)), check=options.check)
        sys.stdout.write(json.dumps(figures))
        return
    rows: list[Row] = [(_REPVGG, depth, _NARROW) for depth in options.blocks]
    rows += [(_CHAIN, options.chain, _NARROW)]
    rows += [(_REPVGG, _FEW, width) for width in options.widths]
    found: dict[Row, Runs] = {row: [] for row in rows}
    for _ in range(options.rounds):
        for row in rows:
            found[row].append(_child(row, check=options.check))
    report(found)


def _child(row: Row, *, check: bool) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__)), "--child", *map(str, row)]
    command += ["--check"] * check
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def fold(row: Row, *, check: bool) -> dict[str, float]:
    """Fold one network in this process: seconds, what it took at most, and whether all folded."""
    torch.manual_seed(0)
    kind, depth, width = row
    network = (_chain if kind == _CHAIN else _repvgg)(depth, width).eval()
    x = torch.randn(1, width, 8, 8)
    refold.reparameterize(_repvgg(1, _NARROW).eval(), torch.randn(1, _NARROW, 8, 8))  # warm up
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.perf_counter()
    done = refold.reparameterize(network, x, check=check)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in done.modules())
    return {
        "seconds": seconds,
        "peak": float(peak),
        "weights": float(weights),
        "parameters": float(sum(p.numel() for p in network.parameters())),
        "norms": float(norms),
    }


def _repvgg(depth: int, width: int) -> nn.Module:
    return nn.Sequential(*(RepVGGBlock(width, width, 3, padding=1) for _ in range(depth)))


def _chain(depth: int, width: int) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(depth // 3):
        layers += [nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers)


def report(found: dict[Row, Runs]) -> None:
    """Print medians and spread, and the fit."""
    threads = torch.get_num_threads()
    title = f"{platform.machine()}, {threads} threads, torch {torch.__version__}"
    table = Table(title=f"one fold per fresh process, median (min to max); {title}")
    for column in (
        "network", "number", "channels", "parameters", "seconds", "ms each", "peak of weights",
        "norms left",
    ):  # fmt: skip
        table.add_column(column, justify="left" if column == "network" else "right")
    for (kind, depth, width), runs in found.items():
        seconds = [run["seconds"] for run in runs]
        middle = statistics.median(seconds)
        peak = statistics.median(run["peak"] / run["weights"] for run in runs)
        table.add_row(
            kind, f"{depth}", f"{width}", f"{runs[0]['parameters'] / 1e6:.1f} M",
            f"{middle:.2f} ({min(seconds):.2f} to {max(seconds):.2f})",
            f"{1e3 * middle / depth:.2f}", f"{peak:.2f}", f"{runs[0]['norms']:.0f}",
        )  # fmt: skip
    console = Console(width=130)
    console.print(table)
    console.print(_fit({row: runs for row, runs in found.items() if row[0] == _REPVGG}))


def _fit(found: dict[Row, Runs]) -> str:
    """Return what one block and one parameter cost, and what that makes of a large network."""
    facts = [(row[1], runs[0]["parameters"]) for row, runs in found.items()]
    times = [statistics.median(run["seconds"] for run in runs) for runs in found.values()]
    columns = torch.tensor([[1.0, blocks, size] for blocks, size in facts], dtype=torch.double)
    scale = 1 / torch.tensor(times, dtype=torch.double)  # relative errors count alike
    wanted = torch.ones(len(times), 1, dtype=torch.double)
    start, block, parameter = torch.linalg.lstsq(columns * scale[:, None], wanted).solution[:, 0]
    size, blocks = _LARGE
    seconds = float(start + block * blocks + parameter * size)
    return (
        f"fit: {float(start):.2f} s, {1e3 * float(block):.2f} ms a block, "
        f"{1e9 * float(parameter):.2f} ns a parameter; {size / 1e9:.0f} billion parameters in "
        f"{blocks} blocks would take {seconds:.0f} s (reckoned, not run)"
    )


if __name__ == "__main__":
    main()
