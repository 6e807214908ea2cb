"""Folding against timm's own conversion: time and memory, each run in a fresh process.

    python benchmarks/convert.py [--model NAME ...] [--runs 3] [--before DIR] [--example]

All convert the same float32 network with live norm statistics; runs alternate. `unchecked` is
refold with `check=False`: like timm it then runs neither form on numbers. `before` is refold as it
is in another checkout, DIR. "Extra" is resident memory after the conversion minus before, with the
source model still alive, as a caller keeps it; "peak" is the highest point in between.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import timm
import torch
from rich.console import Console
from rich.table import Table
from timm.utils import reparameterize_model
from torch import nn

import refold

_MIB = 2**20
_MODELS = ("repvgg_b3", "repvgg_d2se", "mobileone_s0", "fastvit_ma36", "repvit_m2_3")
_TOOLS = ("timm", "refold", "unchecked")
_BEFORE = "before"


def main() -> None:
    """Compare, or (with --child) do one conversion and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", nargs="+", default=_MODELS)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--before", type=Path, help="a checkout of another revision")
    parser.add_argument("--example", action="store_true", help="give refold an example input")
    parser.add_argument("--child", choices=(*_TOOLS, _BEFORE))
    options = parser.parse_args()
    if options.child:
        figures = convert(options.child, options.model[0], example=options.example)
        sys.stdout.write(json.dumps(figures))
        return
    tools = _TOOLS if options.before is None else (*_TOOLS, _BEFORE)
    for model in options.model:
        rows: dict[str, list[dict[str, float]]] = {tool: [] for tool in tools}
        for _ in range(options.runs):
            for tool in tools:
                rows[tool].append(_child(tool, model, options.before, example=options.example))
        report(model, rows)


def _child(tool: str, model: str, before: Path | None, *, example: bool) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__)), "--child", tool, "--model", model]
    command += ["--example"] * example
    elsewhere = {"PYTHONPATH": str(before / "src")} if tool == _BEFORE and before else {}
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, **elsewhere}
    )
    return json.loads(done.stdout.splitlines()[-1])


def convert(tool: str, name: str, *, example: bool = False) -> dict[str, float]:
    """Convert one network in this process and return seconds, MiB and the error of one output."""
    torch.manual_seed(0)
    model = _with_live_norms(timm.create_model(name)).eval()
    tensors = [*model.parameters(), *model.buffers()]
    weights = sum(t.numel() * t.element_size() for t in tensors) / _MIB
    size: Any = model.pretrained_cfg["input_size"]
    given = (torch.randn(1, *size),) if example and tool != "timm" else ()
    unchecked = {"check": False} if tool == "unchecked" else {}
    gc.collect()
    before, start = _resident(), time.perf_counter()
    if tool == "timm":
        done = reparameterize_model(model)
    else:
        done = refold.reparameterize(model, *given, **unchecked)
    seconds = time.perf_counter() - start
    extra, peak = _resident() - before, _peak() - before
    with torch.no_grad():
        x = torch.randn(1, 3, 64, 64) if "vgg" in name else torch.randn(1, *size)
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
    for tool in [tool for tool in rows if tool not in ("timm", "refold")]:
        console.print(_ratio(rows, tool, "refold"))
    console.print(_ratio(rows, "timm", "unchecked"))
    console.print(_ratio(rows, "timm", "refold"))
    share = statistics.median(run["peak"] / run["weights"] for run in rows["refold"])
    console.print(f"refold's peak extra memory is {share:.2f}x the weights")
    console.print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )


def _ratio(rows: dict[str, list[dict[str, float]]], one: str, other: str) -> str:
    pairs = zip(rows[one], rows[other], strict=True)
    ratio = statistics.median(a["seconds"] / b["seconds"] for a, b in pairs)
    return f"{other} is {ratio:.2f}x as fast as {one} (median of paired runs)"


def _spread(runs: list[dict[str, float]], key: str) -> str:
    values = [run[key] for run in runs]
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
