"""Exported files, run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from refold.exporting import open_file, runtime_of


def run_file(path: Path, x: Tensor) -> Tensor:
    """Run a file in the runtime that it is for."""
    if runtime_of(path) is not None:
        run, _ = open_file(path)
        return run((x,))[0]
    return torch.export.load(path).module()(x)
