"""ONNX files in: fold what any framework wrote, through the same algebra and the same passes."""

from __future__ import annotations

from refold.onnx_files.comparison import compare, inputs_for, write_openvino
from refold.onnx_files.folding import fold_onnx
from refold.onnx_files.graphs import FoldedGraphs, graphs_of, in_double, kind_of
from refold.onnx_files.passes import OnnxAccount, prune_onnx, remove_residuals_onnx
from refold.onnx_files.proof import Trial
from refold.onnx_files.reading import read
from refold.onnx_files.report import OnnxReport
from refold.onnx_files.saving import parts_of

__all__ = [
    "FoldedGraphs",
    "OnnxAccount",
    "OnnxReport",
    "Trial",
    "compare",
    "fold_onnx",
    "graphs_of",
    "in_double",
    "inputs_for",
    "kind_of",
    "parts_of",
    "prune_onnx",
    "read",
    "remove_residuals_onnx",
    "write_openvino",
]
