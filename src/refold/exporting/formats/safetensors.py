"""`.safetensors`: the state_dict, every key present, readable without running any code."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from refold.checkpoint.write import as_plain
from refold.errors import ExportError
from refold.exporting.provenance import keyed
from refold.exporting.request import Request


def write_safetensors(request: Request, path: Path) -> None:
    """Write the state_dict, then read it back; axes and names play no part."""
    plain = as_plain(request.model.state_dict(), Path(path.name))
    safetensors.torch.save_file(plain, path, metadata={"format": "pt"} | keyed(request.provenance))
    read = safetensors.torch.load_file(path)
    for name, tensor in plain.items():
        if not torch.equal(_bits(tensor), _bits(read[name])):
            raise ExportError(f"{name} reads back from {path.name} with other values")


def _bits(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor: NaN is not equal to itself, and is written all the same."""
    return tensor.reshape(-1).view(torch.uint8)
