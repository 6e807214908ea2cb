"""Small ONNX files, written as text, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from refold.onnx_files.trials import session


def model(text: str, weights: dict[str, tuple[int, ...]], opset: int = 17, ir: int = 8) -> Any:
    """Return a model of a graph's text; weights whose names begin with v are variances."""
    imports = f'"" : {opset}, "com.microsoft" : 1'
    made = onnx.parser.parse_model(f"<ir_version: {ir}, opset_import: [{imports}]> net {text}")
    draw = np.random.default_rng(0)
    for name, shape in weights.items():
        low = name.startswith("v")
        values = draw.uniform(0.5, 2, shape) if low else draw.standard_normal(shape)
        array = np.asarray(values, np.float32)
        made.graph.initializer.append(numpy_helper.from_array(array, name))
        if ir < 4:
            made.graph.input.append(
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
            )
    for at, node in enumerate(made.graph.node):
        node.name = node.name or f"{node.op_type}_{at}"
    return made


def norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a norm's weights: g, b, m, v and the name."""
    return {f"{letter}{name}": (channels,) for letter in "gbmv"}


def written(folder: Path, made: Any, name: str = "net.onnx") -> Path:
    """Write a model and return its path."""
    path = folder / name
    onnx.save(made, path)
    return path


def kinds(path: Path) -> list[str]:
    """Return the operators of a file in order, constants left out."""
    return [n.op_type for n in onnx.load(path).graph.node if n.op_type != "Constant"]


def run(path: Path, **inputs: Any) -> list[Any]:
    """Run a file without optimisations."""
    return session(path).run(None, inputs)


def assert_same(one: Path, other: Path, **shapes: tuple[int, ...]) -> None:
    """Compare two files on random inputs of these shapes, in float32."""
    draw = np.random.default_rng(1)
    inputs = {k: draw.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    for a, b in zip(run(one, **inputs), run(other, **inputs), strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-4, atol=2e-5 * max(1e-9, np.abs(a).max()))
