from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from helpers.onnx_texts import assert_same, kinds, model, norm, written
from refold.onnx_files import fold_onnx

NORM = "y = BatchNormalization(a, gn, bn, mn, vn)"
SCATTERS = [
    "strides=[2,2], pads=[0,1,1,0]",
    "strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]",
    "strides=[2,2], pads=[1,0,0,1], output_padding=[1,0]",
    'strides=[2,2], auto_pad="SAME_UPPER"',
    'strides=[2,2], auto_pad="SAME_LOWER"',
    'strides=[2,3], auto_pad="VALID", dilations=[2,1]',
    "strides=[2,2], output_shape=[9,10]",
]


def folded(tmp_path: Path, made: onnx.ModelProto, **shapes: tuple[int, ...]) -> list[str]:
    source, out = written(tmp_path, made), tmp_path / "out.onnx"
    fold_onnx(source, out)
    assert_same(source, out, **shapes)  # the oracle: the file itself, without optimisations
    return kinds(out)


@pytest.mark.parametrize("window", SCATTERS)
def test_transposed_convolutions_however_they_are_cut(tmp_path: Path, window: str) -> None:
    text = f"(float[n,3,5,5] x) => (float[n,4,i,j] y) {{ a = ConvTranspose<{window}>(x, w, b) "
    made = model(text + NORM + " }", {"w": (3, 4, 3, 3), "b": (4,), **norm("n", 4)})
    assert folded(tmp_path, made, x=(2, 3, 5, 5)) == ["ConvTranspose"]


@pytest.mark.parametrize(
    "given", ["alpha=0.5, beta=2.0, transB=1", "beta=0.0, transB=1", "alpha=3.0, transB=1"]
)
def test_factors_of_a_gemm(tmp_path: Path, given: str) -> None:
    text = f"(float[n,6] x) => (float[n,8] y) {{ a = Gemm<{given}>(x, w, b) {NORM} }}"
    made = model(text, {"w": (8, 6), "b": (8,), **norm("n", 8)})
    assert folded(tmp_path, made, x=(3, 6)) == ["Gemm"]


@pytest.mark.parametrize("mode", ["CRD", "DCR"])
def test_a_norm_behind_a_shuffle_of_either_order(tmp_path: Path, mode: str) -> None:
    text = f"""(float[n,3,h,w] x) => (float[n,2,i,j] y) {{ c = Conv<pads=[1,1,1,1]>(x, w)
      a = DepthToSpace<blocksize=2, mode="{mode}">(c) {NORM} }}"""
    made = model(text, {"w": (8, 3, 3, 3), **norm("n", 2)})
    assert folded(tmp_path, made, x=(2, 3, 4, 5)) == ["Conv", "DepthToSpace"]


def test_einsum_with_a_matrix_is_a_layer(tmp_path: Path) -> None:
    text = """(float[n,t,6] x) => (float[n,t,8] y) {
      a = Einsum<equation="bij,jk->bik">(x, w) b = Mul(a, s) y = Add(b, s) }"""
    made = model(text, {"w": (6, 8), "s": (8,)})
    assert folded(tmp_path, made, x=(2, 5, 6)) == ["MatMul", "Add"]


def test_a_product_and_its_sum_are_one_gemm(tmp_path: Path) -> None:
    text = """(float[n,6] x) => (float[n,5] y) {
      a = MatMul(x, w) b = Add(c, a) d = Relu(b) e = MatMul(d, v) y = Add(e, o) }"""
    made = model(text, {"w": (6, 8), "c": (8,), "v": (8, 5), "o": (5,)})
    source, out = written(tmp_path, made), tmp_path / "out.onnx"
    report = fold_onnx(source, out)
    assert_same(source, out, x=(3, 6))
    assert kinds(out) == ["Gemm", "Relu", "Gemm"]
    assert [step.detail for step in report.steps] == ["MatMul_0 + Add_1", "MatMul_3 + Add_4"]
    stored = {t.name for t in onnx.load(out).graph.initializer}
    assert stored == {"w", "c", "v", "o"}  # none was copied


REASONS = {
    "a = Gemm<transA=1>(x, w) y = Mul(a, s)": ("[6,n]", {"w": (6, 8), "s": (8,)}, "transA"),
    "a = Gemm(x, w, b) y = Mul(a, s)": (
        "[4,6]",
        {"w": (6, 8), "b": (4, 8), "s": (8,)},
        "its bias differs from row to row",
    ),
    "a = ConvTranspose<strides=[2,2], output_shape=[11,11]>(x, w) y = Mul(a, s)": (
        "[n,3,h,w]",
        {"w": (3, 4, 3, 3), "s": (4, 1, 1)},
        "its output_shape makes a padding that depends on the input's size",
    ),
    "a, q, r = BatchNormalization<training_mode=1>(x, gn, bn, mn, vn) y = Conv(a, w)": (
        "[n,3,h,w]",
        {"w": (4, 3, 1, 1), **norm("n", 3)},
        "it normalises with the batch, as in training",
    ),
}


@pytest.mark.parametrize("nodes", REASONS)
def test_a_layer_that_is_not_read_says_why(tmp_path: Path, nodes: str) -> None:
    shape, weights, reason = REASONS[nodes]
    text = f"(float{shape} x) => (float y) {{ {nodes} }}"
    report = fold_onnx(written(tmp_path, model(text, weights)))
    [kept] = [item for item in report.kept if not item.where.startswith("Mul")]
    assert reason in kept.reason
    assert not report.changed


@pytest.mark.parametrize("replaceable", [False, True])
def test_weights_that_a_caller_gives(tmp_path: Path, replaceable: bool) -> None:
    text = "(float[n,3,h,w] x, float[8] gn) => (float y) { a = Conv(x, w) " + NORM + " }"
    shapes = {"w": (8, 3, 1, 1), **norm("n", 8)}
    made = model(text, shapes if replaceable else {k: s for k, s in shapes.items() if k != "gn"})
    report = fold_onnx(written(tmp_path, made))
    said = {item.reason for item in report.kept}
    wanted = "so a caller may replace it" if replaceable else "an input of the file decides"
    assert any(wanted in reason for reason in said)


def test_factors_beyond_the_type_are_said(tmp_path: Path) -> None:
    text = "(float16[n,2] x) => (float16[n,2] y) { a = Gemm<alpha=300.0>(x, w) y = Mul(a, s) }"
    made = model(text, {})
    for name, shape in (("w", (2, 2)), ("s", (2,))):
        array = np.full(shape, 300, np.float16)
        made.graph.initializer.append(numpy_helper.from_array(array, name))
    [kept] = fold_onnx(written(tmp_path, made)).kept
    assert "beyond the largest of its type" in kept.reason
