"""ONNX files in: fold what any framework wrote, through the same algebra and the same passes."""

from __future__ import annotations

from refold.onnx_files.folding import fold_onnx
from refold.onnx_files.report import OnnxReport

__all__ = ["OnnxReport", "fold_onnx"]
