"""Folding RepMLP by scattering kernel taps, against pushing an identity matrix through the convs.

    python benchmarks/repmlp_fold.py [--runs 5] [--before DIR]

Two subjects: RepMLPNet-L256, and one block of C = O = 256 on a 14x14 map with 8 groups. Each run is
a fresh process that computes in one thread, the methods alternate. "identity" and "matrices" do the
same job: from float32 weights and live norms they make the FC3 of every block, the latter with the
engine's operators and rules and, as in the engine, memory that a second core makes ready. "network"
is `refold.reparameterize`: record, fold everything else too, copy what stays and run both forms;
"unchecked" does not run them, and "before" is that in another checkout, DIR, by its own copy of
this file. "CPU" is the processor time of all threads. "Peak" is the highest resident memory above
that before, beside the size of what is made.

The identity method is the paper's Algorithm 1 (arXiv:2105.01883) in the steps of the released code:
all kernels padded to the largest and added, one unit a number of a group pushed through them as one
float32 batch, the result added to the scaled FC3. Two things differ: the reshape is the one that is
right for every channel count, and no layer is built with random weights that are then replaced.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import refold
from refold.algebra.geometry import Axis
from refold.algebra.norm import norm_affine
from refold.algebra.operator import Affine, Conv, Flatten, Input, add, leaves, points, sequence
from refold.algebra.row import Unflatten
from refold.blocks import RepMLPBlock
from refold.blocks.partition import PartitionBlock
from refold.engine.decisions import Decisions
from refold.engine.memory import made_ready
from refold.engine.row_slices import fold_rows_in_slices

_MIB = 2**20
_METHODS = ("identity", "matrices", "network", "unchecked")
_BEFORE = "before"
_SUBJECTS = ("repmlpnet_l256", "block")


def main() -> None:
    """Compare, or (with --child) do one conversion and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--before", type=Path, help="a checkout of another revision")
    parser.add_argument("--child", nargs=2, metavar=("METHOD", "SUBJECT"))
    options = parser.parse_args()
    if options.child:
        sys.stdout.write(json.dumps(fold(*options.child)))
        return
    console = Console(width=130)
    methods = _METHODS if options.before is None else (*_METHODS, _BEFORE)
    for subject in _SUBJECTS:
        rows: dict[str, list[dict[str, float]]] = {method: [] for method in methods}
        for _ in range(options.runs):
            for method in methods:
                rows[method].append(_child(method, subject, options.before))
        console.print(report(subject, rows))


def _child(method: str, subject: str, before: Path | None) -> dict[str, float]:
    script, around = Path(__file__), dict(os.environ)
    if method == _BEFORE and before is not None:
        script = before / "benchmarks" / script.name
        around["PYTHONPATH"] = str(before / "src")
        # Where no fold ran what it had made, there was one way to fold.
        method = "unchecked" if '"unchecked"' in script.read_text() else "network"
    command = [sys.executable, str(script), "--child", method, subject]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=around)
    return json.loads(done.stdout)


def subject_of(name: str) -> tuple[nn.Module, Tensor]:
    """Return a network whose norms are alive, and an input of its size."""
    torch.manual_seed(0)
    if name == "block":
        model: nn.Module = RepMLPBlock(256, 256, img_size=14, partition=14, groups=8)
        x = torch.randn(1, 256, 14, 14)
    else:
        model, x = refold.create_model(name), torch.randn(1, 3, 256, 256)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            cast(Tensor, part.running_mean).normal_(0, 0.1)
            cast(Tensor, part.running_var).uniform_(0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0, 0.1)
    return model.eval(), x


def fold(method: str, subject: str) -> dict[str, float]:
    """Fold in this process; return seconds, MiB and the error of what was made."""
    torch.set_num_threads(1)
    refold.reparameterize(nn.Sequential(nn.Conv2d(3, 3, 1)).eval(), torch.zeros(1, 3, 2, 2))
    model, x = subject_of(subject)
    blocks = [part for part in model.modules() if isinstance(part, PartitionBlock)]
    gc.collect()
    _forget_peak()
    before, start, used = _resident(), time.perf_counter(), time.process_time()
    made: Any = _BY_NAME[method](model, blocks, x)
    seconds, cpu = time.perf_counter() - start, time.process_time() - used
    peak = _peak() - before
    tensors = made if isinstance(made, list) else [*made.parameters(), *made.buffers()]
    size = sum(t.numel() * t.element_size() for t in tensors) / _MIB
    error = error_of(made, model, x)
    return {"seconds": seconds, "cpu": cpu, "peak": peak, "made": size, "error": error}


def error_of(made: Any, model: nn.Module, x: Tensor) -> float:
    """Return the largest difference of the output, or, for bare weights, of the last block's."""
    with torch.no_grad():
        if isinstance(made, nn.Module):
            wanted, found = model(x), made(x)
        else:
            block = [part for part in model.modules() if isinstance(part, PartitionBlock)][-1]
            stack = torch.randn(2, block.channels[0], *block.grid.partition)
            weight, bias = made[-2:]
            row = F.conv2d(stack.reshape(2, -1, 1, 1), weight, bias, groups=block.fc3.groups)
            wanted, found = block.perceive(stack), row.reshape(2, -1, *block.grid.partition)
    return ((wanted - found).abs().max() / wanted.abs().max()).item()


def by_network(model: nn.Module, blocks: list[PartitionBlock], x: Tensor) -> nn.Module:
    """Return the folded network."""
    return refold.reparameterize(model, x)


def by_network_unchecked(model: nn.Module, blocks: list[PartitionBlock], x: Tensor) -> nn.Module:
    """Return the folded network; neither form is run."""
    return refold.reparameterize(model, x, check=False)


def by_matrices(model: nn.Module, blocks: list[PartitionBlock], x: Tensor) -> list[Tensor]:
    """Return weight and bias of every block's FC3, folded by the rules."""
    decisions = Decisions()
    with torch.no_grad(), made_ready([block.fc3.weight for block in blocks]):
        return [tensor for block in blocks for tensor in _matrix(block, decisions)]


def _matrix(block: PartitionBlock, decisions: Decisions) -> tuple[Tensor, Tensor]:
    size, start = block.grid.partition, Input("x", block.channels[0])
    fc3 = Conv(block.fc3.weight, None, points(2), block.fc3.groups)
    norm, row = _affine(block.fc3_bn), (Flatten(size, 2), fc3)
    last = (Unflatten(size, 2), norm) if block.norm_on_map else (norm, Unflatten(size, 2))
    branches = [sequence(start, *row, *last)]
    for name in block.locals:
        part: Any = block.get_submodule(name)
        axes = tuple(Axis(k, lo=k // 2, hi=k // 2) for k in part.conv.kernel_size)
        conv = Conv(part.conv.weight, None, axes, part.conv.groups)
        branches.append(sequence(start, conv, _affine(part.bn)))
    op = add(*branches)
    shadow, replay = decisions.stand_in(op)
    rewrite = decisions.rewrite(shadow)
    whole = fold_rows_in_slices(rewrite, op) or replay.run(rewrite)
    [merged] = [leaf for leaf in leaves(whole) if isinstance(leaf, Conv)]
    assert merged.bias is not None
    return merged.weight.float(), merged.bias.float()


def _affine(norm: Any) -> Affine:
    return norm_affine(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)


def by_identity(model: nn.Module, blocks: list[PartitionBlock], x: Tensor) -> list[Tensor]:
    """Return weight and bias of every block's FC3."""
    with torch.no_grad():
        return [tensor for block in blocks for tensor in _identity(block)]


def _identity(block: PartitionBlock) -> tuple[Tensor, Tensor]:
    (h, w), groups = block.grid.partition, block.fc3.groups
    kernel, bias = _one_kernel(block)
    width = kernel.shape[1]
    units = torch.eye(width * h * w).repeat(1, groups).reshape(-1, width * groups, h, w)
    pushed = F.conv2d(units, kernel, padding=kernel.shape[-1] // 2, groups=groups)
    del units
    weight = pushed.flatten(1).t()
    scale, shift = _scale(cast(nn.BatchNorm2d, block.fc3_bn))
    repeats = block.fc3.out_channels // len(scale)
    scale, shift = scale.repeat_interleave(repeats), shift.repeat_interleave(repeats)
    weight = weight + block.fc3.weight.flatten(1) * scale[:, None]
    return weight[:, :, None, None], shift + bias.repeat_interleave(h * w)


def _one_kernel(block: PartitionBlock) -> tuple[Tensor, Tensor]:
    """Return the convolutions with their norms as one."""
    branches: list[Any] = [block.get_submodule(name) for name in block.locals]
    largest = max(branch.conv.weight.shape[-1] for branch in branches)
    kernels, biases = list[Tensor](), list[Tensor]()
    for branch in branches:
        scale, shift = _scale(branch.bn)
        ring = (largest - branch.conv.weight.shape[-1]) // 2
        kernels.append(F.pad(branch.conv.weight * scale[:, None, None, None], [ring] * 4))
        biases.append(shift)
    return torch.stack(kernels).sum(0), torch.stack(biases).sum(0)


def _scale(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    mean, var = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale = norm.weight / (var + norm.eps).sqrt()
    return scale, norm.bias - mean * scale


_BY_NAME: dict[str, Callable[[nn.Module, list[PartitionBlock], Tensor], Any]] = {
    "identity": by_identity,
    "matrices": by_matrices,
    "network": by_network,
    "unchecked": by_network_unchecked,
}


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / _MIB


def _forget_peak() -> None:
    """Let the kernel count the peak anew, from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float:
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("VmHWM")) / 1024


def report(subject: str, rows: dict[str, list[dict[str, float]]]) -> Table:
    """Return medians and spread, and how the two compare."""
    table = Table(title=f"{subject}, float32, one thread: median (range) of {len(rows['network'])}")
    columns = (
        "method", "seconds", "CPU", "made, MiB", "peak / made", "error", "faster", "by CPU"
    )  # fmt: skip
    for at, column in enumerate(columns):
        table.add_column(column, justify="right" if at else "left")
    for method in rows:
        found = {key: [row[key] for row in rows[method]] for key in rows[method][0]}
        ratio = statistics.median(found["peak"]) / statistics.median(found["made"])
        table.add_row(
            method,
            spread(found["seconds"], 2),
            f"{statistics.median(found['cpu']):.2f}",
            f"{statistics.median(found['made']):,.0f}",
            f"{ratio:.2f}",
            f"{max(found['error']):.0e}",
            *("" if method == "identity" else times(rows, method, by) for by in ("seconds", "cpu")),
        )
    return table


def times(rows: dict[str, list[dict[str, float]]], method: str, by: str) -> str:
    """Return how many times faster than the identity method a method is, run by run."""
    pairs = zip(rows["identity"], rows[method], strict=True)
    return spread([slow[by] / fast[by] for slow, fast in pairs], 1)


def spread(values: list[float], digits: int) -> str:
    """Return the median and the range."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


if __name__ == "__main__":
    main()
