"""Exported files, run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from refold.exporting import (
    onnx_session,
    open_executorch,
    open_litert,
    openvino_model,
    run_executorch,
    run_litert,
    run_onnx,
    run_openvino,
)


def run_file(path: Path, x: Tensor) -> Tensor:
    """Run a file in the runtime that it is for."""
    if path.suffix == ".onnx":
        return run_onnx(onnx_session(path), (x,))[0]
    if path.suffix == ".xml":
        return run_openvino(openvino_model(path), (x,))[0]
    if path.suffix == ".pte":
        return run_executorch(open_executorch(path), (x,))[0]
    if path.suffix == ".tflite":
        return run_litert(open_litert(path), (x,))[0]
    return torch.export.load(path).module()(x)
