"""Checkpoints that a run survives with: whole or not there, the last and the best always kept.

A checkpoint is one safetensors file, tensors and plain numbers alike. It is written under a hidden
name, then under its own, and only then the pointer `last` (or `best`) is replaced by one that names
it. Whatever moment a process is killed at, the pointers name whole files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from refold.errors import CheckpointError, InputError, TrainingError
from refold.files import atomic_path
from refold.graph.skeleton import storage_key

FOLDER = "checkpoints"
LAST, BEST = "last", "best"
_KEY = "refold"
_SPARE = 2**20  # bytes that are left free beside a checkpoint


@dataclass(frozen=True)
class Snapshot:
    """The state of a run between two steps.

    Args:
        tensors: by name: the network's, its average's, the optimizer's.
        plain: all that is no tensor, as JSON can hold it.
    """

    tensors: dict[str, Tensor]
    plain: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def network(self) -> dict[str, Tensor]:
        """The weights of the network that is judged and deployed: the average's, if there is."""
        return self.part("ema") or self.part("learner.network")

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors below a prefix, by the rest of their names."""
        start = f"{prefix}."
        rows = self.tensors.items()
        return {name[len(start) :]: tensor for name, tensor in rows if name.startswith(start)}


class Saves:
    """The checkpoints of a run.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: Path) -> None:
        self.folder = run / FOLDER

    def write(self, snapshot: Snapshot, step: int, pointers: tuple[str, ...] = (LAST,)) -> Path:
        """Write a checkpoint, make pointers name it, and remove those that no pointer names.

        Args:
            snapshot: what to write.
            step: names the file.
            pointers: `LAST`, `BEST` or both.

        Raises:
            TrainingError: when the disk is full; the checkpoints that were there still are.
        """
        path = self.folder / f"step-{step:09}.safetensors"
        tensors = {name: value.detach().contiguous() for name, value in snapshot.tensors.items()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._require_room(path, tensors)
            with atomic_path(path) as temporary:
                plain = {_KEY: json.dumps(snapshot.plain)}
                safetensors.torch.save_file(_unshared(tensors), temporary, metadata=plain)
            for pointer in pointers:
                self._point(pointer, path.name)
        except (InputError, OSError) as error:
            raise TrainingError(
                f"the checkpoint of step {step} could not be written ({error}); "
                f"{self._standing()}; make room and go on with --resume"
            ) from error
        self._tidy()
        return path

    def read(self, pointer: str = LAST) -> Snapshot | None:
        """Return the checkpoint that a pointer names; None when the run has none yet.

        Raises:
            CheckpointError: when the file is missing or damaged.
        """
        path = self.named(pointer)
        if path is None:
            return None
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                plain = json.loads((file.metadata() or {})[_KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
            raise CheckpointError(
                f"{path}, which {self.folder / pointer} names, is no whole checkpoint: {error}; "
                f"write the name of another one into {self.folder / pointer}"
            ) from error
        return Snapshot(tensors, plain)

    def named(self, pointer: str) -> Path | None:
        """Return the file that a pointer names, if there is such a pointer."""
        try:
            return self.folder / (self.folder / pointer).read_text().strip()
        except FileNotFoundError:
            return None

    def clean(self) -> None:
        """Remove what a killed process left half-written."""
        for path in self.folder.glob(".refold-*"):
            shutil.rmtree(path, ignore_errors=True)
        if self.folder.is_dir():
            self._tidy()

    def _point(self, pointer: str, name: str) -> None:
        with atomic_path(self.folder / pointer) as temporary:
            temporary.write_text(name + "\n")

    def _tidy(self) -> None:
        kept = {self.named(LAST), self.named(BEST)}
        for path in self.folder.glob("step-*.safetensors"):
            if path not in kept:
                path.unlink(missing_ok=True)

    def _require_room(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        need = sum(value.numel() * value.element_size() for value in tensors.values()) + _SPARE
        free = shutil.disk_usage(path.parent).free
        if free < need:
            raise InputError(
                f"it needs {need / 2**20:.0f} MiB, and {path.parent} has {free / 2**20:.0f} free"
            )

    def _standing(self) -> str:
        last = self.named(LAST)
        return f"{last} stands" if last else "there is none yet"


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of which no two have the same memory, which the format does not allow."""
    seen: set[int] = set()
    plain: dict[str, Tensor] = {}
    for name, value in tensors.items():
        place = storage_key(value)
        plain[name] = value.clone() if place in seen and value.numel() else value
        seen.add(place)
    return plain
