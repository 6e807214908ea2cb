"""Write weights as one safetensors file, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from refold.checkpoint.kinds import fault
from refold.errors import InputError
from refold.files import atomic_path


def write_state_dict(state: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write tensors by name to a safetensors file and return its path.

    Raises:
        InputError: when the file cannot be written, or the format cannot hold an entry.

    Examples:
        >>> import tempfile, torch
        >>> folder = tempfile.TemporaryDirectory()
        >>> write_state_dict({"bias": torch.ones(2)}, Path(folder.name) / "w.safetensors").name
        'w.safetensors'
        >>> folder.cleanup()
    """
    plain = as_plain(state, Path(path))
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(plain, temporary, metadata={"format": "pt"})
    return Path(path)


def as_plain(state: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Return copies of tensors as a safetensors file holds them; a module may keep anything else.

    Tied weights are written once per name: the format knows no sharing, and a file that lacks a
    key would not load strictly.

    Args:
        state: what to write.
        path: where to, for the message.

    Raises:
        InputError: when an entry is not a tensor, or not a plain array of numbers.
    """
    for name, value in state.items():
        what = fault(value) if isinstance(value, Tensor) else f"a {type(value).__name__}"
        if what is not None:
            raise InputError(f"{name} cannot be written to {path}: it is {what}")
    return {name: tensor.detach().contiguous().clone() for name, tensor in state.items()}
