"""Folding RepVGG-B3 against timm's own conversion: time and memory, each run in a fresh process.

    python benchmarks/convert.py [--model repvgg_b3] [--runs 3]

Both convert the same float32 network with live norm statistics; runs alternate. "Extra" is resident
memory after the conversion minus before, with the source model still alive, as a caller keeps it;
"peak" is the highest point in between.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import timm
import torch
from rich.console import Console
from rich.table import Table
from timm.utils import reparameterize_model
from torch import nn

import refold

_MIB = 2**20
_TOOLS = ("timm", "refold")


def main() -> None:
    """Compare, or (with --child) do one conversion and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", default="repvgg_b3")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--child", choices=_TOOLS)
    options = parser.parse_args()
    if options.child:
        sys.stdout.write(json.dumps(convert(options.child, options.model)))
        return
    rows: dict[str, list[dict[str, float]]] = {tool: [] for tool in _TOOLS}
    for _ in range(options.runs):
        for tool in _TOOLS:
            rows[tool].append(_child(tool, options.model))
    report(options.model, rows)


def _child(tool: str, model: str) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__)), "--child", tool, "--model", model]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def convert(tool: str, name: str) -> dict[str, float]:
    """Convert one network in this process and return seconds, MiB and the error of one output."""
    torch.manual_seed(0)
    model = _with_live_norms(timm.create_model(name)).eval()
    tensors = [*model.parameters(), *model.buffers()]
    weights = sum(t.numel() * t.element_size() for t in tensors) / _MIB
    gc.collect()
    before, start = _resident(), time.perf_counter()
    done = refold.reparameterize(model) if tool == "refold" else reparameterize_model(model)
    seconds = time.perf_counter() - start
    extra, peak = _resident() - before, _peak() - before
    with torch.no_grad():
        x = torch.randn(1, 3, 64, 64)
        expected = model(x)
        error = ((done(x) - expected).abs().max() / expected.abs().max()).item()
    convs = sum(isinstance(module, nn.Conv2d) for module in done.modules())
    return {
        "seconds": seconds,
        "weights": weights,
        "extra": extra,
        "peak": peak,
        "error": error,
        "convs": convs,
    }


def _with_live_norms(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.75, 1.25)
            nn.init.uniform_(module.weight, 0.75, 1.25)
            nn.init.normal_(module.bias, std=0.1)
    return model


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / _MIB


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(model: str, rows: dict[str, list[dict[str, float]]]) -> None:
    """Print medians and spread, and the ratios that are asked for."""
    console = Console()
    table = Table(title=f"{model}: one conversion per fresh process, median (min to max)")
    for column in ("", "seconds", "extra MiB", "peak MiB", "weights MiB", "conv", "float32 error"):
        table.add_column(column)
    for tool, runs in rows.items():
        cells = [_spread(runs, key) for key in ("seconds", "extra", "peak")]
        first = runs[0]
        table.add_row(
            tool,
            *cells,
            f"{first['weights']:.0f}",
            f"{first['convs']:.0f}",
            f"{first['error']:.1e}",
        )
    console.print(table)
    pairs = zip(rows["timm"], rows["refold"], strict=True)
    ratio = statistics.median(a["seconds"] / b["seconds"] for a, b in pairs)
    share = statistics.median(run["peak"] / run["weights"] for run in rows["refold"])
    console.print(f"refold is {ratio:.2f}x as fast as timm's conversion (median of paired runs)")
    console.print(f"refold's peak extra memory is {share:.2f}x the weights")
    console.print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )


def _spread(runs: list[dict[str, float]], key: str) -> str:
    values = [run[key] for run in runs]
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
