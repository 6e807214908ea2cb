"""Fold a file of more than 2 GB, and measure what it costs.

    python benchmarks/large_file.py [--gigabytes 2.2] [--folder FOLDER] [--check]

The file has three matrices, whose weights lie outside it: one that nothing is folded into, one
that takes in a scale, and one with a norm behind it. Memory is the most that this process held,
what it mapped of the file included. All files are removed afterwards.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

import refold

_GB = 10**9
_ROWS = 1024  # of a matrix that are written at a time


def main() -> None:
    """Make the file, fold it, and print time and memory."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--gigabytes", type=float, default=2.2)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--check", action="store_true", help="run both files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        source, out = Path(name) / "net.onnx", Path(name) / "folded.onnx"
        size = write(source, options.gigabytes)
        before, start = peak(), time.perf_counter()
        report = refold.fold_onnx(source, out, check=options.check)
        seconds = time.perf_counter() - start
        data = sum(path.stat().st_size for path in Path(name).glob("folded.onnx*"))
        print(report)
        print(
            f"{size / _GB:.2f} GB in, {data / _GB:.2f} GB out, {seconds:.1f} s, "
            f"memory {before / _GB:.2f} -> {peak() / _GB:.2f} GB"
        )


def peak() -> int:
    """Return the most bytes that this process has held."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def write(path: Path, gigabytes: float) -> int:
    """Write a file with so many bytes of weights beside it, and return how many."""
    width = int((gigabytes * _GB / 3 / 4) ** 0.5)
    draw = np.random.default_rng(0)
    data = path.with_name("net.data")
    tensors = list[Any]()
    with data.open("wb") as stream:
        for name in ("u", "v", "w"):
            start = stream.tell()
            for row in range(0, width, _ROWS):
                block = draw.standard_normal((min(_ROWS, width - row), width), np.float32)
                stream.write((block / width**0.5).tobytes())
            tensors.append(outside(name, [width, width], start, stream.tell() - start))
    for name in ("s", "g", "b", "m", "n"):
        vector = draw.uniform(0.5, 1.5, width).astype(np.float32)
        tensors.append(numpy_helper.from_array(vector, name))
    nodes = [
        helper.make_node("MatMul", ["x", "u"], ["a"], "left"),
        helper.make_node("Relu", ["a"], ["c"], "relu"),
        helper.make_node("MatMul", ["c", "v"], ["d"], "scaled"),
        helper.make_node("Mul", ["d", "s"], ["e"], "scale"),
        helper.make_node("Relu", ["e"], ["f"], "relu_2"),
        helper.make_node("MatMul", ["f", "w"], ["h"], "normed"),
        helper.make_node("BatchNormalization", ["h", "g", "b", "m", "n"], ["y"], "norm"),
    ]
    ends = [helper.make_tensor_value_info(name, 1, ["batch", width]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], tensors)
    opset = helper.make_opsetid("", 17)
    path.write_bytes(
        helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()
    )
    return data.stat().st_size


def outside(name: str, shape: list[int], offset: int, length: int) -> Any:
    """Return a tensor whose numbers lie beside the file."""
    tensor = onnx.TensorProto(name=name, data_type=1, dims=shape, data_location=1)
    for key, value in (("location", "net.data"), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


if __name__ == "__main__":
    main()
