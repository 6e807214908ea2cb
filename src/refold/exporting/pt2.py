"""`.pt2`: the format of torch.export, loadable without the model's source."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from refold.equivalence import run, tensor_leaves
from refold.errors import ExportError, one_line
from refold.exporting.batch import Batch


def trace(model: nn.Module, batch: Batch) -> ExportedProgram:
    """Return the exported program with a free batch size.

    Raises:
        ExportError: When the model's forward cannot be traced so.
    """
    try:
        return torch.export.export(model, batch.example, dynamic_shapes=batch.dynamic_shapes)
    except Exception as error:  # torch.export has dozens of them, without a common base
        raise ExportError(
            f"torch.export cannot trace {type(model).__name__} with a free batch size: "
            f"{one_line(error)}; its forward may neither fix the batch nor branch on values"
        ) from error


def write_pt2(model: nn.Module, batch: Batch, path: Path) -> None:
    """Write the program, then load and run it."""
    # Through memory: on a full disk torch's own writer would end the process in its destructor.
    content = io.BytesIO()
    torch.export.save(trace(model, batch), content)
    path.write_bytes(content.getbuffer())
    loaded = torch.export.load(path).module()
    batch.check(model, "torch.export", lambda inputs: tensor_leaves(run(loaded, inputs)))
