"""A tiny run, so small that a whole training takes a second or two."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

import refold
from refold.training import Habits, Progress, Reporter

ROOT = Path(__file__).parents[2]

# Exporting to ONNX takes longer than such a run: it is done where a test looks at the file.
LIGHT = {"deploy.files": ["safetensors"]}
WHOLE = {"deploy.files": ["safetensors", "onnx"]}
TINY: dict[str, Any] = {
    "epochs": 2, "batch_size": 4, "model": "repvgg_a0",
    "options": {"depths": [1, 1, 1, 1], "width": [0.0625, 0.0625, 0.0625, 0.03125]},
    "augment": {"size": 12, "crop": "pad", "jitter": 0.2},
    "optimizer.lr": 0.02, "ema": 0.9, "schedule.warmup": 0.1, **LIGHT,
}  # fmt: skip


def tiny(
    output: Path, data: Path, *, save_steps: int = 0, log_steps: int = 1, workers: int = 0,
    fsdp: bool = False, **options: Any,
) -> Any:  # fmt: skip
    """Train for some steps on a folder of images."""
    changes = {**TINY, **options.pop("changes", {})}
    habits = Habits(save_steps=save_steps, log_steps=log_steps, workers=workers, fsdp=fsdp)
    recipe = None if options.get("resume") else "folder"
    if recipe is None:
        return refold.train(output=output, habits=habits, tracker="none", cpu=True, **options)
    return refold.train(
        recipe, output=output, data=data, changes=changes, habits=habits, tracker="none",
        cpu=True, **options,
    )  # fmt: skip


def last(run: Path) -> dict[str, Tensor]:
    """Return every tensor of a run's last checkpoint."""
    name = (run / "checkpoints" / "last").read_text().strip()
    return safetensors.torch.load_file(run / "checkpoints" / name)


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Say whether two checkpoints hold the same bits under the same names."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    """Return what a run measured."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def start(*words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, with this source tree and one thread."""
    paths = os.pathsep.join(map(str, (ROOT / "src", ROOT / "tests")))
    return subprocess.run(
        [sys.executable, *map(str, words)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **env},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


class Told(Reporter):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


class AtStep(Reporter):
    """Sends this process a signal at a step; Ctrl-C's where no other is named."""

    def __init__(self, at: int, number: int = signal.SIGINT) -> None:
        self.at, self.number, self.steps = at, number, 0

    def step(self, progress: Progress) -> None:
        self.steps += 1
        if self.steps == self.at:
            signal.raise_signal(self.number)


class Fragile(nn.Module):
    """A network with drop-out, whose loss becomes NaN once it has seen so many batches."""

    def __init__(self, classes: int = 2, after: int | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes),
        )  # fmt: skip
        self.after, self.seen = after, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += self.training
        broken = self.after is not None and self.seen > self.after
        return self.body(x) * (float("nan") if broken else 1.0)
