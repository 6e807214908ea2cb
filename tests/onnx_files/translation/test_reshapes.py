from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper

from helpers.onnx_texts import assert_same, kinds, model, norm, written
from refold.onnx_files import fold_onnx, read
from refold.onnx_files.constants import sizes_of

FLAT = """(float[n,6,4] x) => (float[n,6,8] y) { a = MatMul(x, w) f = Flatten<axis=2>(a)
  b = BatchNormalization(f, gn, bn, mn, vn) s = Shape(a) r = Reshape(b, s) y = Add(r, c) }"""


def folded(
    tmp_path: Path, text: str, sizes: dict[str, list[int]], **x: tuple[int, ...]
) -> list[str]:
    made = model(text, {"w": (4, 8), "c": (8,), **norm("n", 8)})
    for name, size in sizes.items():
        made.graph.initializer.append(numpy_helper.from_array(np.array(size), name))
    source, out = written(tmp_path, made), tmp_path / "out.onnx"
    fold_onnx(source, out)
    assert_same(source, out, **x)
    return kinds(out)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_norm_of_flattened_rows_leaves_no_layout(tmp_path: Path, batch: int) -> None:
    text = FLAT.replace("[n,", f"[{batch},")
    assert folded(tmp_path, text, {}, x=(batch, 6, 4)) == ["MatMul", "Add"]


def test_where_the_batch_is_free_the_norm_goes(tmp_path: Path) -> None:
    assert folded(tmp_path, FLAT, {}, x=(3, 6, 4)) == ["MatMul", "Add"]


def test_only_the_last_of_several_reshapes_stays(tmp_path: Path) -> None:
    text = """(float[n,6,4] x) => (float[n,3,8] y) {
      a = Reshape(x, one) b = Flatten(a) y = Reshape(b, two) }"""
    sizes = {"one": [-1, 2, 3, 4], "two": [-1, 3, 8]}
    assert folded(tmp_path, text, sizes, x=(3, 6, 4)) == ["Reshape"]


def test_a_reshape_that_others_read_stays(tmp_path: Path) -> None:
    text = """(float[n,6,4] x) => (float[n,3,8] y, float[n,24] z) {
      b = Flatten(x) z = Relu(b) y = Reshape(b, two) }"""
    found = folded(tmp_path, text, {"two": [-1, 3, 8]}, x=(3, 6, 4))
    assert found == ["Flatten", "Relu", "Reshape"]


def test_a_reshape_that_keeps_sizes_of_what_it_reads_stays(tmp_path: Path) -> None:
    text = """(float[n,6,t] x) => (float[n,3,k] y) { b = Reshape(x, one) y = Reshape(b, two) }"""
    sizes = {"one": [0, 3, -1], "two": [0, 0, -1]}
    assert folded(tmp_path, text, sizes, x=(3, 6, 4)) == ["Reshape", "Reshape"]


def test_sizes_are_known_through_any_number_of_reshapes(tmp_path: Path) -> None:
    steps = " ".join(
        f"s{i} = Shape(v{i}) r{i} = Relu(v{i}) v{i + 1} = Reshape(r{i}, s{i})" for i in range(12)
    )
    made = model(f"(float[n,6,4] v0) => (float y) {{ {steps} y = Relu(v12) }}", {})
    sizes = sizes_of(read(written(tmp_path, made)))
    assert sizes.fixed("v12") == (None, 6, 4)


def test_layers_with_a_function_tell_sizes(tmp_path: Path) -> None:
    text = """(float[n,3,h,w] x) => (float y) {
      a = com.microsoft.FusedConv<activation="Relu", kernel_shape=[3,3]>(x, w) b = Mul(a, s)
      y = Conv(b, v) }"""
    made = model(text, {"w": (8, 3, 3, 3), "s": (8, 1, 1), "v": (4, 8, 1, 1)})
    source, out = written(tmp_path, made), tmp_path / "out.onnx"
    fold_onnx(source, out)
    assert_same(source, out, x=(2, 3, 5, 6))
    assert kinds(out) == ["FusedConv", "Conv"]
