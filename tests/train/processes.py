"""One of several training processes; `torchrun` starts them. Usage: processes.py RUN DATA BLOCK."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from train.runs import tiny

PAIR = {
    "epochs": 2, "batch_size": 8, "ema": None, "mix.mixup": 0.0, "augment.auto": "trivial",
    "decay.custom_l2": True,
}  # fmt: skip


def main() -> None:
    """Train with the batch shared by all processes."""
    run, data, block = sys.argv[1:]
    torch.set_num_threads(1)
    shared_run(Path(run), Path(data), block)


def shared_run(run: Path, data: Path, block: str) -> None:
    """Train a tiny network that folds through the synchronised norms of its branches."""
    if block == "none":
        tiny(run, data, changes=PAIR)
        return
    torch.manual_seed(5)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip
    tiny(run, data, model=net, changes={**PAIR, "block": block, "decay.custom_l2": False})


if __name__ == "__main__":
    main()
