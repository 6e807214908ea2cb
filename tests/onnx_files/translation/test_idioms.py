from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from helpers.onnx_texts import assert_same, kinds, model, written
from refold.onnx_files import fold_onnx

NORM = """m = ReduceMean<axes=[-1]>(x) d = Sub(x, m) p = Pow(d, two) v = ReduceMean<axes=[-1]>(p)
  e = Add(v, eps) q = Sqrt(e) z = Div(d, q)"""
SHAPES = {"g": (8,), "b": (8,), "w": (8, 4), "u": (8, 8), "c": (8,)}
NUMBERS = {"two": 2.0, "eps": 1e-5, "root": 2**0.5, "one": 1.0, "half": 0.5, "three": 3.0}
NUMBERS |= {"cube": 0.044715, "scale": (2 / np.pi) ** 0.5}
RMS = "p = Pow(x, two) v = ReduceMean<axes=[-1]>(p) e = Add(v, eps) q = Sqrt(e)"
WHOLE = {
    "layer norm": f"{NORM} s = Mul(z, g) t = Add(s, b) y = MatMul(t, w)",
    "layer norm, swapped": f"{NORM} s = Mul(g, z) t = Add(b, s) y = MatMul(t, w)",
    "root mean square": f"{RMS} z = Div(x, q) s = Mul(z, g) y = MatMul(s, w)",
    "its inverse": f"{RMS} o = Reciprocal(q) z = Mul(x, o) s = Mul(z, g) y = MatMul(s, w)",
    "GELU, halved last": """k = MatMul(x, u) a = Add(k, c) d = Div(a, root) e = Erf(d)
      f = Add(e, one) h = Mul(a, f) t = Mul(h, half) y = MatMul(t, w)""",
    "GELU, halved first": """k = MatMul(x, u) a = Add(k, c) d = Div(a, root) e = Erf(d)
      f = Add(e, one) s = Mul(a, half) t = Mul(s, f) y = MatMul(t, w)""",
    "GELU by tanh": """k = MatMul(x, u) a = Add(k, c) p = Pow(a, three) d = Mul(p, cube)
      o = Add(a, d) r = Mul(o, scale) e = Tanh(r) f = Add(e, one) h = Mul(a, f) t = Mul(h, half)
      y = MatMul(t, w)""",
}


def file(tmp_path: Path, nodes: str) -> Path:
    text = f"(float[n,t,8] x) => (float[n,t,4] y) {{ {nodes} }}"
    made = model(
        text,
        {name: s for name, s in SHAPES.items() if f"{name})" in nodes or f"({name}," in nodes},
        13,
    )
    for name, number in NUMBERS.items():
        if name in nodes:
            made.graph.initializer.append(numpy_helper.from_array(np.float32(number), name))
    return written(tmp_path, made)


def optimised(path: Path, folder: Path) -> Counter[str]:
    """Return the operators that ONNX Runtime leaves of a file."""
    options, out = onnxruntime.SessionOptions(), folder / "optimised.onnx"
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(out)
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(kinds(out))


@pytest.mark.parametrize("name", WHOLE)
def test_what_a_runtime_computes_as_one_stays_whole(tmp_path: Path, name: str) -> None:
    source, out = file(tmp_path, WHOLE[name]), tmp_path / "out.onnx"
    report = fold_onnx(source, out)
    said = [item for item in report.kept if "as one function" in item.reason]
    assert len(said) == (name != "GELU, halved first")  # whose last product is of two values
    assert kinds(out) == kinds(source)
    assert optimised(source, tmp_path) == optimised(out, tmp_path)


def test_it_is_one_function_there(tmp_path: Path) -> None:
    made = optimised(file(tmp_path, WHOLE["layer norm"]), tmp_path)
    assert made["LayerNormalization"] == 1
    assert made["Div"] == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [("axes=[-1]", "axes=[1]"), ("t = Add(s, b) y = MatMul(t, w)", "y = MatMul(s, w)")],
)
def test_what_no_runtime_knows_is_folded(tmp_path: Path, old: str, new: str) -> None:
    source, out = file(tmp_path, WHOLE["layer norm"].replace(old, new)), tmp_path / "out.onnx"
    fold_onnx(source, out)
    assert kinds(out).count("Mul") == 0
    assert_same(source, out, x=(2, 5, 8))
    assert onnx.load(out).graph.node[-1].output[0] == "y"
