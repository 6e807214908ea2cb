"""Export a model to one checked file, its format chosen by the suffix; open such a file again."""

from __future__ import annotations

from .dispatch import SUFFIXES, export
from .onnx import onnx_session, run_onnx
from .openvino import openvino_model, run_openvino
from .quiet import quiet

__all__ = [
    "SUFFIXES",
    "export",
    "onnx_session",
    "openvino_model",
    "quiet",
    "run_onnx",
    "run_openvino",
]
