"""Write weights as one safetensors file, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

from refold.files import atomic_path


def write_state_dict(state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> Path:
    """Write tensors by name to a safetensors file and return its path.

    Raises:
        InputError: when the file cannot be written.

    Examples:
        >>> import tempfile, torch
        >>> folder = tempfile.TemporaryDirectory()
        >>> write_state_dict({"bias": torch.ones(2)}, Path(folder.name) / "w.safetensors").name
        'w.safetensors'
        >>> folder.cleanup()
    """
    plain = {name: tensor.detach().contiguous().clone() for name, tensor in state.items()}
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(plain, temporary, metadata={"format": "pt"})
    return Path(path)
