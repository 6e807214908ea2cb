"""The other verbs on an ONNX file: residuals removed, channels dropped."""

from __future__ import annotations

from refold.onnx_files.passes.account import OnnxAccount
from refold.onnx_files.passes.pruning import prune_onnx
from refold.onnx_files.passes.residuals import remove_residuals_onnx

__all__ = ["OnnxAccount", "prune_onnx", "remove_residuals_onnx"]
