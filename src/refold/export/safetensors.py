"""`.safetensors`: the state_dict, every key present, readable without running any code."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from refold.errors import ExportError

from .batch import Batch


def write_safetensors(model: nn.Module, batch: Batch, path: Path) -> None:
    """Write the state_dict, then read it back; the batch plays no part.

    Tied weights are written once per name: the format knows no sharing, and a file that lacks a
    key would not load strictly.
    """
    state: dict[str, Tensor] = model.state_dict()
    plain = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    safetensors.torch.save_file(plain, path, metadata={"format": "pt", "refold": _version()})
    read = safetensors.torch.load_file(path)
    for name, tensor in plain.items():
        if not torch.equal(tensor, read[name]):
            raise ExportError(f"{name} reads back from {path.name} with other values")


def _version() -> str:
    try:
        return metadata.version("refold")
    except metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"
