"""How the cost of folding grows with depth: milliseconds a block, and memory beside the weights.

    python benchmarks/depth.py [--blocks 100 300 1000 3000] [--chain 10000] [--rounds 3] [--check]

Blocks are RepVGG's, 8 channels wide, in one `nn.Sequential`; the chain is 1x1 convolutions with
norms and ReLUs. Each fold is a process of its own with an example of 8 x 8 pixels; rounds alternate
between depths. `--check` runs both forms on numbers as well, as `reparameterize` does by default.
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

_WIDTH = 8
_CHAIN = "chain"


def main() -> None:
    """Compare depths, or (with --child) fold one network."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--blocks", type=int, nargs="+", default=[100, 300, 1000, 3000])
    parser.add_argument("--chain", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--child", nargs=2, metavar=("KIND", "DEPTH"))
    options = parser.parse_args()
    if options.child:
        kind, depth = options.child
        sys.stdout.write(json.dumps(fold(kind, int(depth), check=options.check)))
        return
    rows = [("RepVGG", depth) for depth in options.blocks] + [(_CHAIN, options.chain)]
    found: dict[tuple[str, int], list[dict[str, float]]] = {row: [] for row in rows}
    for _ in range(options.rounds):
        for kind, depth in rows:
            found[kind, depth].append(_child(kind, depth, check=options.check))
    report(found)


def _child(kind: str, depth: int, *, check: bool) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__)), "--child", kind, str(depth)]
    command += ["--check"] * check
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def fold(kind: str, depth: int, *, check: bool) -> dict[str, float]:
    """Fold one network in this process: seconds, what it took at most, and whether all folded."""
    torch.manual_seed(0)
    network = (_chain if kind == _CHAIN else _repvgg)(depth).eval()
    x = torch.randn(1, _WIDTH, 8, 8)
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.perf_counter()
    done = refold.reparameterize(network, x, check=check)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in done.modules())
    return {"seconds": seconds, "peak": float(peak), "weights": float(weights), "norms": norms}


def _repvgg(depth: int) -> nn.Module:
    return nn.Sequential(*(RepVGGBlock(_WIDTH, _WIDTH, 3, padding=1) for _ in range(depth)))


def _chain(depth: int) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(depth // 3):
        layers += [nn.Conv2d(_WIDTH, _WIDTH, 1), nn.BatchNorm2d(_WIDTH), nn.ReLU()]
    return nn.Sequential(*layers)


def report(found: dict[tuple[str, int], list[dict[str, float]]]) -> None:
    """Print medians and spread."""
    threads = torch.get_num_threads()
    title = f"{platform.machine()}, {threads} threads, torch {torch.__version__}"
    table = Table(title=f"one fold per fresh process, median (min to max); {title}")
    for column in ("network", "depth", "seconds", "ms a block", "KiB a block", "norms left"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for (kind, depth), runs in found.items():
        seconds = [run["seconds"] for run in runs]
        middle = statistics.median(seconds)
        table.add_row(
            f"{kind} layers" if kind == _CHAIN else f"{kind} blocks", f"{depth}",
            f"{middle:.2f} ({min(seconds):.2f} to {max(seconds):.2f})",
            f"{1e3 * middle / depth:.2f}",
            f"{statistics.median(run['peak'] for run in runs) / depth / 1024:.0f}",
            f"{runs[0]['norms']:.0f}",
        )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
