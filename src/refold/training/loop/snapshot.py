"""The state of a run between two steps, and the one file that holds it.

A file carries the SHA-256 of all that is in it, numbers and tensors, so that one whose bytes have
changed is detected when it is read, not after a network was trained on it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from refold.errors import CheckpointError, one_line
from refold.graph import storage_key

_PLAIN, _DIGEST = "refold", "sha256"


@dataclass(frozen=True)
class Snapshot:
    """The state of a run between two steps.

    Args:
        tensors: by name: the network's, its average's, the optimizer's.
        plain: everything else, as JSON can hold it.
    """

    tensors: dict[str, Tensor]
    plain: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def network(self) -> dict[str, Tensor]:
        """The weights of the network that is judged and deployed: the average's, if there is."""
        return self.part("ema") or self.part("learner.network")

    @property
    def best_epoch(self) -> int | None:
        """The epoch with the best judgement so far, from 1; None before the first judgement."""
        return self.plain.get("position", {}).get("best_epoch")

    def ends(self, epoch: int) -> bool:
        """Say whether this is the state at the end of an epoch, counted from 1."""
        position = self.plain.get("position", {})
        return (position.get("epoch"), position.get("step")) == (epoch, 0)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors below a prefix, by the rest of their names."""
        start = f"{prefix}."
        rows = self.tensors.items()
        return {name[len(start) :]: tensor for name, tensor in rows if name.startswith(start)}


def write_snapshot(path: Path, snapshot: Snapshot) -> None:
    """Write a snapshot to a file and read it back.

    Raises:
        CheckpointError: when the file does not hold what was written.
        OSError: when it cannot be written; so does safetensors's own error.
    """
    tensors = _unshared(snapshot.tensors)
    text = json.dumps(snapshot.plain)
    digest = _digest(text, tensors, tensors.__getitem__)
    notes = {_PLAIN: text, _DIGEST: digest}
    safetensors.torch.save_file(tensors, path, metadata=notes)
    with safetensors.safe_open(path, framework="pt") as file:
        found = file.metadata() or {}
        # A tensor at a time, so that the memory need not hold them all twice.
        if _digest(found.get(_PLAIN, ""), file.keys(), file.get_tensor) != digest:
            raise CheckpointError(f"{path.name} reads back differently from what was written")


def read_snapshot(path: Path) -> Snapshot:
    """Return the snapshot of a file.

    Raises:
        CheckpointError: when the file is missing or damaged; the message is the reason alone.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        snapshot = Snapshot(tensors, json.loads(notes[_PLAIN]))
    except Exception as error:  # a damaged header breaks readers in ways of their own
        raise CheckpointError(one_line(error)) from error
    # A file of an earlier version has no digest, and nothing else in its place.
    if set(notes) != {_PLAIN} and notes.get(_DIGEST) != _digest(
        notes[_PLAIN], tensors, tensors.__getitem__
    ):
        raise CheckpointError("its content does not match its checksum")
    return snapshot


def _digest(text: str, names: Iterable[str], tensor_of: Callable[[str], Tensor]) -> str:
    """Return the SHA-256 of plain values and tensors, types and shapes included."""
    found = hashlib.sha256(text.encode())
    for name in sorted(names):
        tensor = tensor_of(name)
        found.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content: Any = tensor.reshape(-1).view(torch.uint8).numpy()
        found.update(content)
    return found.hexdigest()


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors on the host of which no two share memory, which the format does not allow."""
    seen: set[int] = set()
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        place = storage_key(value)
        plain[name] = value.clone() if place in seen and value.numel() else value
        seen.add(place)
    return plain
