"""A training process that kills itself, as the power would: no handler runs, nothing is flushed.

Usage: kill.py RUN DATA WORKERS WHERE, where WHERE is `step:N` (after step N), `write:N` (in the
middle of writing the N-th checkpoint) or `named:N` (before a pointer names a file the N-th time).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import safetensors.torch
import torch

from refold.training.loop import saves
from training.runs import AtStep, tiny

SAVE_STEPS = 2


def kill_in_write(at: int) -> None:
    """Replace the writing of a file by one that dies half-way the `at`-th time."""
    whole, count = safetensors.torch.save_file, [0]

    def save_file(tensors, path, metadata=None):
        whole(tensors, path, metadata)
        count[0] += 1
        if count[0] == at:
            with Path(path).open("r+b") as file:
                file.truncate(Path(path).stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    safetensors.torch.save_file = save_file


def kill_before_pointer(at: int) -> None:
    """Die once a checkpoint is there and no pointer names it."""
    point, count = saves.Saves._point, [0]

    def dying(self, pointer, name):
        count[0] += 1
        if count[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        point(self, pointer, name)

    saves.Saves._point = dying


def main() -> None:
    """Train until killed, or to the end."""
    run, data, workers, where = sys.argv[1:]
    torch.set_num_threads(1)
    kind, _, number = where.partition(":")
    if kind == "write":
        kill_in_write(int(number))
    elif kind == "named":
        kill_before_pointer(int(number))
    killer = AtStep(int(number), signal.SIGKILL) if kind == "step" else None
    tiny(Path(run), Path(data), save_steps=SAVE_STEPS, workers=int(workers), reporter=killer)


if __name__ == "__main__":
    main()
