"""Export a model to one checked file, its format chosen by the suffix; open such a file again."""

from __future__ import annotations

from refold.exporting.dispatch import SUFFIXES, export
from refold.exporting.metadata import describe, described
from refold.exporting.onnx import onnx_session, run_onnx
from refold.exporting.openvino import openvino_model, run_openvino
from refold.exporting.silence import quiet

__all__ = [
    "SUFFIXES",
    "describe",
    "described",
    "export",
    "onnx_session",
    "openvino_model",
    "quiet",
    "run_onnx",
    "run_openvino",
]
