"""The folder of a run: its settings, where it ran, what it measured."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from refold.errors import InputError
from refold.files import atomic_path, write_json
from refold.train.cookbook import from_yaml, to_yaml

CONFIG, ENVIRONMENT, METRICS, SUMMARY = (
    "config.yaml", "environment.json", "metrics.jsonl", "summary.json",
)  # fmt: skip
_PACKAGES = (
    "refold", "torch", "torchvision", "timm", "accelerate", "torchmetrics", "numpy", "pillow",
)  # fmt: skip


class RunFolder:
    """The files of a run, beside its checkpoints.

    Args:
        path: the folder.
        writes: whether this process is the one that writes.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self.writes = path, writes

    def require_new(self) -> None:
        """Refuse a folder that holds a run already.

        Raises:
            InputError: if so, or if it cannot be made.
        """
        if (self.path / CONFIG).exists():
            raise InputError(
                f"{self.path} holds a run already: say --resume to go on with it, or choose "
                "another folder"
            )
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file: give the name of a folder")

    def config(self) -> dict[str, Any]:
        """Return the settings of the run that the folder holds.

        Raises:
            InputError: when it holds none.
        """
        if not (self.path / CONFIG).is_file():
            raise InputError(f"{self.path} holds no run ({CONFIG} is missing): leave --resume out")
        return from_yaml(self.path / CONFIG)

    def begin(self, config: Mapping[str, Any]) -> None:
        """Write the settings and where the run takes place."""
        if not self.writes:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.path} cannot be made: {error.strerror}") from error
        write_json(self.path / ENVIRONMENT, environment())
        # Last: a folder with settings is a run that can go on.
        self._write(CONFIG, to_yaml(config))

    def rewind(self, step: int) -> None:
        """Forget what was measured after a step: it will be measured again."""
        path = self.path / METRICS
        if not self.writes or not path.is_file():
            return
        kept: list[str] = []
        for line in path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError):  # a line that was cut by a kill
                continue
        self._write(METRICS, "".join(f"{line}\n" for line in kept))

    def measure(self, record: Mapping[str, Any]) -> None:
        """Add a line to the measurements."""
        if self.writes:
            with (self.path / METRICS).open("a") as file:
                file.write(json.dumps(record) + "\n")

    def summarise(self, summary: Mapping[str, Any]) -> None:
        """Write what came out."""
        if self.writes:
            write_json(self.path / SUMMARY, summary)

    def _write(self, name: str, text: str) -> None:
        with atomic_path(self.path / name) as temporary:
            temporary.write_text(text)


def environment() -> dict[str, Any]:
    """Return what a run depends on beside its settings."""
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    cuda = torch.cuda.is_available()
    return {
        "packages": versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda if cuda else None,
        "command": sys.argv,
    }
