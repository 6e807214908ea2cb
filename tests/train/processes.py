"""One of several training processes; `torchrun` starts them. Usage: processes.py RUN DATA BLOCK."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

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
    changes = PAIR if block == "none" else {**PAIR, "block": block, "model": "cifar_resnet20"}
    if block != "none":
        changes["options"] = {}
    tiny(run, data, changes=changes)


if __name__ == "__main__":
    main()
