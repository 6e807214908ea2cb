"""An .onnx file and no source: fold what its exporter left, and run both.

Usage: python examples/onnx_file.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from compare import enliven

import refold
from refold.exporting import onnx_session, run_onnx, write_unfused


def main() -> None:
    """Write a training form with all its norms, as old exporters do, and fold the file."""
    model = enliven(refold.create_model("acnet_cifar_quick"))
    x = torch.randn(1, 3, 32, 32)
    with tempfile.TemporaryDirectory() as folder:
        given, folded = Path(folder) / "given.onnx", Path(folder) / "folded.onnx"
        write_unfused(model, (x,), given)
        report = refold.fold_onnx(given, folded)
        wanted, got = (run_onnx(onnx_session(path), (x,))[0] for path in (given, folded))
    error = (wanted - got).abs().max() / wanted.abs().max()
    print(f"acnet_cifar_quick.onnx {tuple(x.shape)} float32 {error:.1e}")
    before, after = (sum(n.values()) for n in (report.nodes_before, report.nodes_after))
    print(f"nodes: {before} -> {after}; {report.nodes_before} -> {report.nodes_after}")


if __name__ == "__main__":
    main()
