"""One of several training processes; `torchrun` starts them, or this file forks two.

Usage: processes.py RUN DATA BLOCK, or processes.py all FOLDER, where FOLDER has the images `data`
and `whole`, and the run `stopped` of one process.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from refold.errors import RefusedError
from refold.training.loop.norms import sync_norms
from refold.training.stopping import Stopped
from training.runs import AtStep, tiny

PAIR = {
    "epochs": 2, "batch_size": 8, "ema": None, "mix.mixup": 0.0, "augment.auto": "trivial",
    "decay.custom_l2": True,
}  # fmt: skip


def main() -> None:
    """Train with the batch, and the weights, shared by all processes; run one norm on it."""
    torch.set_num_threads(1)
    if sys.argv[1] == "all":  # one after the other: a process takes longer to start than to train
        sys.exit(forked(lambda: everything(Path(sys.argv[2]))))
    run, data, block = sys.argv[1:]
    shared_run(Path(run), Path(data), block)


def everything(folder: Path) -> None:
    """Do all that is tested with two processes."""
    shared_run(folder / "two", folder / "data", "dbb")
    shared_norm(folder)
    shared_weights(folder / "two-fsdp", folder / "stopped", folder / "whole")


def forked(work: Callable[[], None], count: int = 2) -> int:
    """Do some work in processes as `torchrun` would start them; return how many failed."""
    children: list[int] = []
    for rank in range(count):
        if child := os.fork():
            children.append(child)
            continue
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        os.environ.update({name: str(number) for name, number in ranks.items()})
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return sum(os.waitpid(child, 0)[1] != 0 for child in children)


def shared_weights(run: Path, stopped: Path, data: Path) -> None:
    """Train with weights that are shared, too; then go on with a run of one process for a while."""
    from refold.training.loop import fsdp as sharded

    sharded._BLOCK = 100  # so that a tiny network has several
    shard, parts = sharded.fully_shard, list[nn.Module]()

    def counted(module, **options):
        parts.append(module)
        return shard(module, **options)

    sharded.fully_shard = counted
    fsdp_run(run, data, fsdp=True)
    assert len(parts) > 4, parts  # of the network and of its average
    with contextlib.suppress(Stopped):
        fsdp_run(stopped, data, fsdp=True, resume=True, reporter=AtStep(3))
    scalar = nn.Module()
    scalar.register_parameter("scale", nn.Parameter(torch.ones(())))
    mesh = sharded.init_device_mesh("cpu", (2,))
    with pytest.raises(RefusedError, match=r"net cannot be sharded: .* scale .* without --fsdp"):
        sharded._shard(scalar, mesh, "net")


def fsdp_run(run: Path, data: Path, **options: Any) -> None:
    """Train with all that has a state or looks at the weights: average, penalty, clipping."""
    changes = {
        **PAIR, "block": "dbb", "decay.custom_l2": False, "ema": 0.9, "clip": 0.5, "accumulate": 2,
        "slimming": {"l1": 1e-2},
    }  # fmt: skip
    tiny(run, data, model=small_net(), changes=changes, **options)


def shared_norm(folder: Path) -> None:
    """Write what this process's half of a batch gives."""
    rank = int(os.environ["RANK"])
    x, like, norm = norm_case()
    sync_norms(norm)
    half = slice(rank * 3, rank * 3 + 3)
    piece = x[half].detach().requires_grad_()
    out = norm(piece)
    (out * like[half]).sum().backward()
    torch.save(
        {"out": out.detach(), "x": piece.grad, "weight": norm[0].weight.grad,
         "mean": norm[0].running_mean, "var": norm[0].running_var},
        folder / f"{rank}.pt",
    )  # fmt: skip


def norm_case() -> tuple[Tensor, Tensor, nn.Sequential]:
    """Return a batch far from zero, what its output is weighed with, and a norm."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(6, 5, 3, 2, generator=generator, dtype=torch.float64) * 3 + 100
    like = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    norm = nn.Sequential(nn.BatchNorm2d(5)).double()
    norm[0].weight.data = torch.randn(5, generator=generator, dtype=torch.float64)
    return x, like, norm


def shared_run(run: Path, data: Path, block: str) -> None:
    """Train a tiny network that folds through the synchronised norms of its branches."""
    if block == "none":
        tiny(run, data, changes=PAIR)
        return
    changes = {**PAIR, "block": block, "decay.custom_l2": False, "ema": 0.9}
    tiny(run, data, model=small_net(), changes=changes)


def small_net() -> nn.Sequential:
    """Return a network with two convolutions that can become blocks, another one in each process.

    The first process's numbers are those that count.
    """
    torch.manual_seed(5 + int(os.environ.get("RANK", "0")))
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip


if __name__ == "__main__":
    main()
