"""The folder of a run: its settings, where it ran, what it measured."""

from __future__ import annotations

import contextlib
import gzip
import importlib.metadata
import json
import os
import platform
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from refold.errors import InputError
from refold.files import atomic_path, require_expanded, write_json
from refold.sources.runs import CHECKPOINTS
from refold.sources.runs import CONFIG as CONFIG
from refold.training.recipes.cookbook import from_yaml, to_yaml

ENVIRONMENT, IMAGES, METRICS, SUMMARY = (
    "environment.json", "images.txt.gz", "metrics.jsonl", "summary.json",
)  # fmt: skip
PRUNED, PRUNING = "pruned.safetensors", "pruning.json"
"""Of a run that begins with pruning: the network that it starts from, and what went."""
_PACKAGES = ("refold", "torch", "torchvision", "timm", "accelerate", "numpy", "pillow")


class RunFolder:
    """The files of a run, beside its checkpoints.

    Args:
        path: the folder.
        writes: whether this process is the one that writes.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self.writes = path, writes

    def require_new(self) -> None:
        """Refuse a folder that already holds a run.

        Raises:
            InputError: if so, or if it cannot be made.
        """
        require_expanded(self.path)
        if (self.path / CONFIG).exists():
            raise InputError(
                f"{self.path} already holds a run: continue it with refold train -o {self.path} "
                "--resume (resume=True), or choose another folder"
            )
        left = [name for name in (METRICS, SUMMARY) if (self.path / name).exists()]
        left += [path.name for path in (self.path / CHECKPOINTS).glob("step-*")]
        if left:
            raise InputError(
                f"{self.path} holds {left[0]} of a run whose settings ({CONFIG}) are missing: put "
                "them back, or choose another folder"
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

    def begin(self, config: Mapping[str, Any], images: str) -> None:
        """Write the settings, where the run takes place, and what its images are.

        Args:
            config: the settings.
            images: as `inventory` lists them.
        """
        write_json(self.path / ENVIRONMENT, environment())
        self.list_images(images)
        # Last: a folder with settings is a run that can be resumed.
        self.configure(config)

    def configure(self, config: Mapping[str, Any]) -> None:
        """Write the settings."""
        self._write(CONFIG, to_yaml(config))

    def list_images(self, images: str) -> None:
        """Write what the images are."""
        packed = gzip.compress(os.fsencode(images), compresslevel=1, mtime=0)
        with atomic_path(self.path / IMAGES) as temporary:
            temporary.write_bytes(packed)

    def images(self) -> str | None:
        """Return the recorded inventory of the images; None if there is none.

        Raises:
            InputError: when the list cannot be read.
        """
        path = self.path / IMAGES
        try:
            return os.fsdecode(gzip.decompress(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(
                f"{path}, the list of the run's images, is damaged ({error}): if they are "
                "unchanged, delete it and continue"
            ) from error

    def rewind(self, step: int) -> None:
        """Drop the measurements after a step: they will be made again."""
        path = self.path / METRICS
        if not self.writes or not path.is_file():
            return
        rows = self._measured()
        kept = [line for line, record in rows if record["step"] <= step]
        self._write(METRICS, "".join(f"{line}\n" for line in kept))

    def start(self) -> dict[str, float] | None:
        """Return how the network was judged before its first step; None where it was not."""
        found = (record for _, record in self._measured() if record["kind"] == "start")
        return next((record["judged"] for record in found), None)

    def pruning(self) -> dict[str, Any] | None:
        """Return what went before a run that begins with pruning; None where none did."""
        path = self.path / PRUNING
        return json.loads(path.read_text()) if path.is_file() else None

    def came_far(self) -> bool:
        """Say whether the run got past its first epoch, and so must have saved."""
        epochs = [record["step"] for _, record in self._measured() if record["kind"] == "epoch"]
        return (self.path / SUMMARY).exists() or len(epochs) > 1

    def _measured(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each complete line of the measurements, raw and parsed."""
        path = self.path / METRICS
        text = path.read_text(errors="replace") if path.is_file() else ""
        for line in text.splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError):  # it was cut by a kill
                record = json.loads(line)
                if record["step"] >= 0 and record["kind"]:
                    yield line, record

    def measure(self, record: Mapping[str, Any]) -> None:
        """Add a line to the measurements."""
        if self.writes:
            with (self.path / METRICS).open("a") as file:
                file.write(json.dumps(record) + "\n")

    def settle(self) -> None:
        """Flush the measurements to disk, so that they survive a power cut."""
        path = self.path / METRICS
        if self.writes and path.is_file():
            with path.open("a") as file:
                os.fsync(file.fileno())

    def summarise(self, summary: Mapping[str, Any]) -> None:
        """Write the summary."""
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
