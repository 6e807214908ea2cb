"""What branches cost in training: time, memory and calls of a step, beside the plain network.

    python benchmarks/train_cost.py [--model resnet18] [--rounds 5] [--size 64] [--batch 32]
                                    [--channels-last] [--compile] [--cuda-graph]

Every row is a process of its own that takes turns with the others: in each round all take a few
steps (forward, backward, SGD). `recompute` computes the branches again in the backward pass, and
`stacked` the kernels of all blocks of one shape at once. "Calls" are operators that the forward and
backward pass dispatch: what is launched on a GPU. `--cuda-graph` launches a whole step as one.
"Kept" is what the forward pass keeps for the backward pass, weights aside. On a GPU the default is
224 pixels, a batch of 128 and bfloat16.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import refold
from refold.blocks import recompute_branches, stack_kernels
from refold.training.loop.captured import CapturedStep, make_capturable
from refold.training.loop.learner import BatchOutcome

_PLAIN = "plain"
_ROWS = (
    _PLAIN, "repvgg", "acb", "mobileone", "orepa", "orepa stacked", "dbb",
    "repvgg recompute", "mobileone recompute", "orepa recompute", "dbb recompute",
)  # fmt: skip
_BARS = {
    "repvgg": 1.9,
    "acb": 1.9,
    "mobileone": 1.9,
    "orepa": 1.6,
    "orepa stacked": 1.6,
    "dbb": 4.0,
}
"""The multiple of plain that a step may take on a GPU, as it was asked for."""
_MIB = 2**20
_WARM_UP = 5
"""Steps before the clock: compiled, or captured as a graph, a step is so by then."""


class Calls(TorchDispatchMode):
    """Counts operators that compute; views and questions launch nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one call, and make it."""
        self.count += not func.is_view and "_unsafe_view" not in str(func)
        return func(*args, **(kwargs or {}))


def main() -> None:
    """Compare, or (with --child) take steps as they are asked for on standard input."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    gpu = torch.cuda.is_available()
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20 if gpu else 2)
    parser.add_argument("--size", type=int, default=224 if gpu else 64)
    parser.add_argument("--batch", type=int, default=128 if gpu else 32)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cuda-graph", action="store_true")
    parser.add_argument("--rows", nargs="+", default=_ROWS)
    parser.add_argument("--child")
    options = parser.parse_args()
    if options.child:
        serve(options.child, options)
    else:
        report(compare(options), options)


def compare(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the figures of every row: all processes are asked in turn."""
    words = [arg for arg in sys.argv[1:] if arg not in ("--rows", *options.rows)]
    children = {
        row: subprocess.Popen(
            [sys.executable, str(Path(__file__)), *words, "--child", row],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for row in options.rows
    }  # fmt: skip
    found: dict[str, dict[str, Any]] = {row: {"ms": []} for row in children}
    try:
        for row, child in children.items():
            found[row] |= _asked(child, "facts")
        for _ in range(options.rounds):
            for row, child in children.items():
                found[row]["ms"].append(_asked(child, "steps")["ms"])
    finally:
        for child in children.values():
            child.kill()
    return found


def _asked(child: subprocess.Popen[str], what: str) -> dict[str, Any]:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(what + "\n")
    child.stdin.flush()
    line = child.stdout.readline()
    if not line:
        raise SystemExit("a row failed; what it said is above")
    return json.loads(line)


def serve(row: str, options: argparse.Namespace) -> None:
    """Answer on standard output what a step takes."""
    step, learn, network = _ready(row, options)
    for _ in range(_WARM_UP):
        step()
    for line in sys.stdin:
        facts = line.strip() == "facts"
        answer = _facts(step, learn, network) if facts else _timed(step, options.steps)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _ready(
    row: str, options: argparse.Namespace
) -> tuple[Callable[[], Any], Callable[[], Any], nn.Module]:
    from timm import create_model

    torch.manual_seed(0)
    gpu = torch.cuda.is_available()
    network: nn.Module = create_model(options.model, num_classes=100)
    block, _, how = row.partition(" ")
    if block != _PLAIN:
        network = refold.expand(network, block)
    if how == "recompute":
        recompute_branches(network)
    device = torch.device("cuda" if gpu else "cpu")
    images = torch.randn(options.batch, 3, options.size, options.size, device=device)
    network = network.to(device).train()
    if options.channels_last:
        network.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    if options.compile:
        network.compile()
    targets = torch.randint(100, (options.batch,), device=device)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.9)

    def learn() -> Tensor:
        together = stack_kernels(network, how == "stacked")
        with torch.autocast(device.type, torch.bfloat16, enabled=gpu), together:
            loss = F.cross_entropy(network(images), targets)
        loss.backward()
        return loss.detach()

    def step() -> Tensor:
        loss = learn()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    if not options.cuda_graph:
        return step, learn, network
    make_capturable(optimizer, "sgd", device)
    captured = CapturedStep(lambda *_: BatchOutcome(step(), targets, targets), row)
    return lambda: captured(images, targets), learn, network


def _timed(step: Callable[[], Any], steps: int) -> dict[str, float]:
    _wait()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    _wait()
    return {"ms": 1e3 * (time.perf_counter() - start) / steps}


def _facts(
    step: Callable[[], Any], learn: Callable[[], Any], network: nn.Module
) -> dict[str, float]:
    weights = {x.untyped_storage().data_ptr() for x in (*network.parameters(), *network.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    inputs = _inputs_of_blocks(network, pack)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        learn()
    network.zero_grad()
    for handle in inputs:
        handle.remove()
    with Calls() as calls:
        learn()
    network.zero_grad()
    facts = {"kept": sum(kept.values()) / _MIB, "calls": float(calls.count)}
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        step()
        facts["peak"] = torch.cuda.max_memory_allocated() / _MIB
    return facts


def _inputs_of_blocks(network: nn.Module, note: Callable[[Tensor], Tensor]) -> list[Any]:
    """Count what a recomputed block keeps, which no hook of autograd sees: its input."""

    def hook(block: nn.Module, given: tuple[Tensor, ...]) -> None:
        note(given[0])

    blocks = [m for m in network.modules() if getattr(m, "recompute", False)]
    return [block.register_forward_pre_hook(hook) for block in blocks]


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def report(found: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    """Print medians, spread and multiples of the plain network."""
    gpu = torch.cuda.is_available()
    where = torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine()
    layout = "channels-last" if options.channels_last else "contiguous"
    table = Table(
        title=f"{options.model}, {options.size} px, batch {options.batch}, {layout}"
        f"{', compiled' if options.compile else ''}"
        f"{', CUDA graph' if options.cuda_graph else ''}; {where}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads",
    )
    columns = ["", "ms a step (min to max)", "x plain", "bar", "kept MiB", "x plain", "calls"]
    for column in [*columns, "peak MiB"] if gpu else columns:
        table.add_column(column, justify="left" if column == "" else "right")
    plain = found.get(_PLAIN, next(iter(found.values())))
    for row, facts in found.items():
        ratios = [one / base for one, base in zip(facts["ms"], plain["ms"], strict=True)]
        bar = _BARS.get(row)
        cells = [
            row, f"{statistics.median(facts['ms']):.1f} ({min(facts['ms']):.1f} to "
            f"{max(facts['ms']):.1f})", f"{statistics.median(ratios):.2f}",
            "" if bar is None else f"{bar:.1f}", f"{facts['kept']:.1f}",
            f"{facts['kept'] / plain['kept']:.2f}", f"{facts['calls']:.0f}",
        ]  # fmt: skip
        table.add_row(*cells, *([f"{facts['peak']:.0f}"] if gpu else []))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
