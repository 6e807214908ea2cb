from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from helpers.onnx_texts import assert_same, kinds, model, norm, written
from refold.errors import InputError
from refold.onnx_files import fold_onnx, lowering, saving, tensors

LOCAL = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
net (float[n,3,h,w] x) => (float[n,8,i,j] y) { y = own.outer(x, w, g, b, m, v) }
<domain: "own", opset_import: ["" : 17, "own" : 1]> outer (x, w, g, b, m, v) => (r) {
  c = own.block(x, w, g, b, m, v) r = own.act(c) }
<domain: "own", opset_import: ["" : 17]> block (x, w, g, b, m, v) => (r) {
  a = Conv(x, w) r = BatchNormalization(a, g, b, m, v) }
<domain: "own", opset_import: ["" : 17]> act (x) => (r) { s = Sigmoid(x) r = Mul(x, s) }"""


def test_equal_small_constants_are_one(tmp_path: Path) -> None:
    text = """(float[n,3,h,w] x) => (float y) { a = Conv(x, w) b = Mul(a, s)
      o = Constant<value_float=3.0>() c = Constant<value_float=3.0>()
      d = Constant<value = float {3.0}>() e = Constant<value = float {3.0}>()
      f = Max(b, o) g = Max(f, c) h = Max(g, d) y = Max(h, e) }"""
    source = written(tmp_path, model(text, {"w": (4, 3, 1, 1), "s": (4, 1, 1)}))
    fold_onnx(source, tmp_path / "out.onnx")
    assert_same(source, tmp_path / "out.onnx", x=(2, 3, 4, 4))
    made = onnx.load(tmp_path / "out.onnx").graph
    scalars = [t for t in made.initializer if not t.dims]
    assert len(scalars) == 1


def test_what_a_caller_may_replace_stays_apart(tmp_path: Path) -> None:
    text = "(float[n,3,h,w] x) => (float y) { a = Conv(x, w) b = Mul(a, s) c = Add(b, x) "
    made = model(text + "d = Max(c, p) y = Max(d, q) }", {"w": (3, 3, 1, 1), "s": (3, 1, 1)})
    for name in "pq":
        made.graph.initializer.append(numpy_helper.from_array(np.float32(3), name))
        made.graph.input.append(helper.make_tensor_value_info(name, 1, []))
    fold_onnx(written(tmp_path, made), tmp_path / "out.onnx")
    out = onnx.load(tmp_path / "out.onnx").graph
    assert {"p", "q"} <= {t.name for t in out.initializer}


def test_functions_of_the_file_that_hold_layers_are_written_out(tmp_path: Path) -> None:
    made = onnx.parser.parse_model(LOCAL)
    draw = np.random.default_rng(0)
    shapes = {"w": (8, 3, 3, 3), **dict.fromkeys("gbmv", (8,))}
    for name, shape in shapes.items():
        array = draw.uniform(0.5, 2, shape).astype(np.float32)
        made.graph.initializer.append(numpy_helper.from_array(array, name))
    source, out = written(tmp_path, made), tmp_path / "out.onnx"
    fold_onnx(source, out)
    assert kinds(out) == ["Conv", "act"]
    assert_same(source, out, x=(2, 3, 5, 6))


def test_where_nothing_folds_functions_stay(tmp_path: Path) -> None:
    made = onnx.parser.parse_model(LOCAL.replace("BatchNormalization(a, g, b, m, v)", "Relu(a)"))
    made.graph.initializer.append(numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "w"))
    for name in "gbmv":
        made.graph.initializer.append(numpy_helper.from_array(np.ones(8, np.float32), name))
    source, out = written(tmp_path, made), tmp_path / "out.onnx"
    assert not fold_onnx(source, out).changed
    assert out.read_bytes() == source.read_bytes()


def test_a_size_fixed_to_nothing_is_said(tmp_path: Path) -> None:
    text = "(float[0,3,4,4] x) => (float y) { a = Conv(x, w) y = Mul(a, s) }"
    source = written(tmp_path, model(text, {"w": (4, 3, 1, 1), "s": (4, 1, 1)}))
    with pytest.raises(InputError, match="its input 'x' has a size that is fixed to 0"):
        fold_onnx(source, tmp_path / "out.onnx")
    fold_onnx(source, tmp_path / "out.onnx", check=False)
    assert kinds(tmp_path / "out.onnx") == ["Conv"]


@pytest.mark.parametrize("name", ["out.txt", "out.pt2", "out"])
def test_a_name_of_another_format_is_refused(tmp_path: Path, name: str) -> None:
    text = "(float[n,3,4,4] x) => (float y) { a = Conv(x, w) y = Mul(a, s) }"
    source = written(tmp_path, model(text, {"w": (4, 3, 1, 1), "s": (4, 1, 1)}))
    with pytest.raises(InputError, match=r"end its name in \.onnx"):
        fold_onnx(source, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_an_input_without_a_shape(tmp_path: Path) -> None:
    text = (
        "(float[n,3,4,4] x) => (float y) { a = Conv(x, w) b = BatchNormalization(a, gn, bn, mn, vn)"
    )
    made = model(text + " y = Relu(b) }", {"w": (4, 3, 1, 1), **norm("n", 4)})
    made.graph.input[0].type.tensor_type.ClearField("shape")
    source, out = written(tmp_path, made), tmp_path / "out.onnx"
    given = {"x": np.ones((2, 3, 4, 4), np.float32)}
    fold_onnx(source, out, example_inputs=given)
    assert kinds(out) == ["Conv", "Relu"]
    assert_same(source, out, x=(2, 3, 5, 7))
    with pytest.raises(InputError, match="example_inputs"):
        fold_onnx(source, out)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("size", [16, 1 << 24])
def test_large_weights_are_written_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, inside: bool
) -> None:
    """The limits of 16 MB and 2 GB, patched small."""
    text = """(float[n,3,h,w] x, float[n,t,6] z) => (float y, float q) {
      a = Conv(x, w) y = Mul(a, s)
      c = MatMul(z, m) q = Mul(c, u) }"""
    shapes = {"w": (4, 3, 3, 3), "s": (4, 1, 1), "m": (6, 50), "u": (50,)}
    source, out = written(tmp_path, model(text, shapes)), tmp_path / "out.onnx"
    for module in (tensors, lowering):
        monkeypatch.setattr(module, "LARGE", size)
    if not inside:
        monkeypatch.setattr(saving, "_LIMIT", 100)
    fold_onnx(source, out)
    assert (tmp_path / "out.onnx.data").exists() != inside
    assert kinds(out) == ["Conv", "MatMul"]
    assert_same(source, out, x=(2, 3, 5, 6), z=(2, 4, 6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
@pytest.mark.parametrize("shape", [(7, 5), (), (0, 3), (3, 0), (9,)])
def test_pieces_are_the_bytes(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    tensor = torch.arange(prod(shape)).reshape(shape).to(dtype)
    turned = tensor.T if len(shape) == 2 else tensor
    wide = turned.view(torch.int16) if dtype == torch.bfloat16 else turned
    monkeypatch.setattr(tensors, "LARGE", 16)
    assert b"".join(tensors.pieces(turned)) == wide.numpy().tobytes()
