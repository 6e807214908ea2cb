"""The dispatcher: a copy of the model, a writer by suffix, one checked file or none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from refold.equivalence import prepared
from refold.errors import ExportError, InputError, RefoldError, one_line
from refold.exporting.batch import Batch
from refold.exporting.onnx import write_onnx
from refold.exporting.openvino import write_openvino
from refold.exporting.pt2 import write_pt2
from refold.exporting.safetensors import write_safetensors
from refold.exporting.silence import quiet
from refold.files import atomic_path

_WRITERS: dict[str, Callable[[nn.Module, Batch, Path], None]] = {
    ".onnx": write_onnx,
    ".pt2": write_pt2,
    ".safetensors": write_safetensors,
    ".xml": write_openvino,
}
SUFFIXES = tuple(_WRITERS)


def export(model: nn.Module, path: str | os.PathLike[str], example_inputs: Any) -> Path:
    """Write the model in the format of the path's suffix and check the file by running it.

    `.onnx` (ONNX Runtime), `.pt2` (`torch.export`) and `.xml` (OpenVINO, with its `.bin`) take
    any batch size and are run at batch 1 and 3; `.safetensors` holds the `state_dict` and is read
    back. The model is never changed; on failure no file is left and an old one stays.

    Args:
        model: A module in eval mode, on any device; the file is for the CPU.
        path: The file to create or replace.
        example_inputs: A tensor, a tuple or list of arguments, or a mapping of them by name;
            dimension 0 of the first tensor is the batch.

    Returns:
        The path written.

    Raises:
        InputError: When the suffix is unknown, the place cannot be written, or the model cannot
            run on the example.
        RefusedError: When the model is in training mode.
        ExportError: When the format cannot express the model, or the file computes otherwise.
        MissingDependencyError: When the format's library is not installed.

    Examples:
        >>> import tempfile, torch
        >>> folder = tempfile.TemporaryDirectory()
        >>> file = export(nn.Linear(2, 3).eval(), f"{folder.name}/a.pt2", torch.ones(1, 2))
        >>> file.name
        'a.pt2'
        >>> folder.cleanup()
    """
    target = Path(path)
    writer = _WRITERS.get(target.suffix.lower())
    if writer is None:
        raise InputError(
            f"cannot export to {target}: the suffix {target.suffix!r} names no format; "
            f"use one of {', '.join(SUFFIXES)}"
        )
    copied, inputs = prepared(model, example_inputs, device="cpu")
    batch = Batch(inputs)
    try:
        with atomic_path(target) as temporary, quiet():
            # Libraries go by a suffix in small letters.
            written = temporary.with_suffix(target.suffix.lower())
            writer(copied, batch, written)
            written.replace(temporary)
    except RefoldError:
        raise
    except Exception as error:
        raise ExportError(
            f"cannot export {type(model).__name__} to {target}: {one_line(error)}"
        ) from error
    return target
