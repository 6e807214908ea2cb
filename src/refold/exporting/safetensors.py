"""`.safetensors`: the state_dict, every key present, readable without running any code."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from refold.checkpoint.write import as_plain
from refold.errors import ExportError
from refold.exporting.batch import Batch


def write_safetensors(model: nn.Module, batch: Batch, path: Path) -> None:
    """Write the state_dict, then read it back; the batch plays no part."""
    plain = as_plain(model.state_dict(), path)
    safetensors.torch.save_file(plain, path, metadata={"format": "pt", "refold": _version()})
    read = safetensors.torch.load_file(path)
    for name, tensor in plain.items():
        if not torch.equal(_bits(tensor), _bits(read[name])):
            raise ExportError(f"{name} reads back from {path.name} with other values")


def _bits(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor: NaN is not equal to itself, and is written all the same."""
    return tensor.reshape(-1).view(torch.uint8)


def _version() -> str:
    try:
        return metadata.version("refold")
    except metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"
