from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

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
    weights = {"w": (4, 8), "c": (8,), **norm("n", 8)}
    return with_numbers(tmp_path, text, weights, sizes, **x)


def with_numbers(
    tmp_path: Path,
    text: str,
    weights: dict[str, Any],
    numbers: dict[str, list[int]],
    **x: tuple[int, ...],
) -> list[str]:
    made = model(text, weights)
    for name, values in numbers.items():
        made.graph.initializer.append(numpy_helper.from_array(np.array(values), name))
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


@pytest.mark.parametrize("batch", ["3", "n"])
def test_a_zero_means_a_size_of_what_the_reshape_reads_itself(tmp_path: Path, batch: str) -> None:
    text = f"""(float[{batch},4,2,2] x) => (float[{batch},4,4] y) {{
      a = Reshape(x, groups) b = Sin(a) d = Reshape(b, whole) y = Reshape(d, flat) }}"""
    sizes = {"groups": [0, 2, 8], "whole": [-1, 4, 2, 2], "flat": [0, 0, -1]}
    found = folded(tmp_path, text, sizes, x=(3, 4, 2, 2))  # the naive join leaves it (3, 2, 8)
    assert found == ["Reshape", "Sin", "Reshape", "Reshape"][: 3 + (batch == "n")]


def phases(*steps: str) -> str:
    """Return a Focus layer whose slices are written so, and the convolution behind it."""
    names = ("rows", "columns")
    cuts = ["zero, end, rows, two", "one, end, rows, two"]
    cuts += [cut.replace(*names) for cut in cuts]
    lines = " ".join(step.format(*cuts) for step in steps)
    return f"""(float[n,3,h,w] x) => (float y) {{ {lines}
      f = Concat<axis=1>(ee, oe, eo, oo) y = Conv<pads=[1,1,1,1]>(f, k) }}"""


CUTS = {"zero": [0], "one": [1], "two": [2], "rows": [2], "columns": [3], "end": [1 << 40]}
HALF_CUTS = ("e = Slice(x, {0})", "o = Slice(x, {1})")
QUARTERS = tuple(
    f"{a}{b} = Slice({a}, {{{at}}})" for at, b in ((2, "e"), (3, "o")) for a in ("e", "o")
)


def cut(tmp_path: Path, text: str, channels: int, **x: tuple[int, ...]) -> list[str]:
    return with_numbers(tmp_path, text, {"k": (8, channels, 3, 3)}, CUTS, **x)


def test_phases_cut_in_two_steps_are_one_convolution(tmp_path: Path) -> None:
    twice = [
        (f"{a}{b}_ = Slice(x, {{{i}}})", f"{a}{b} = Slice({a}{b}_, {{{j}}})")
        for j, b in ((2, "e"), (3, "o"))
        for i, a in ((0, "e"), (1, "o"))
    ]
    for steps in (chain.from_iterable(twice), HALF_CUTS + QUARTERS):  # as exporters write, shared
        assert cut(tmp_path, phases(*steps), 12, x=(2, 3, 6, 8)) == ["Conv"]


def test_a_slice_that_others_read_or_that_cuts_the_same_axis_stays(tmp_path: Path) -> None:
    text = """(float[n,3,h,w] x) => (float y, float z) { a = Slice(x, zero, end, rows, two)
      b = Slice(a, one, end, columns, two) z = Relu(a) y = Sin(b) }"""
    assert cut(tmp_path, text, 1, x=(2, 3, 9, 8)) == ["Slice", "Slice", "Relu", "Sin"]
    text = text.replace("columns", "rows").replace("Relu(a)", "Relu(b)")
    assert cut(tmp_path, text, 1, x=(2, 3, 12, 8)) == ["Slice", "Slice", "Relu", "Sin"]


def test_slices_that_cut_nothing_and_crops_beside_splits_are_written(tmp_path: Path) -> None:
    text = """(float[n,8,h,w] x) => (float y, float z) { a = Slice(x, zero, end, rows)
      b = Slice(a, zero, end, columns) y = Sin(b)
      c = Slice(x, one, end, columns) z = Conv(c, k) }"""
    assert cut(tmp_path, text, 8, x=(2, 8, 9, 8))[-1] == "Conv"
    text = """(float[2,8,4,8] x) => (float y, float z) { a, b = Split<axis=2>(x, halves)
      z = Sin(b) y = Slice(a, halves, ends, turned) }"""
    sizes = {"halves": [2, 2], "ends": [1 << 40, 9], "turned": [-1, 1]}
    assert folded(tmp_path, text, sizes, x=(2, 8, 4, 8)) == ["Split", "Sin", "Slice"]


def test_slices_that_are_a_split_stay_one(tmp_path: Path) -> None:
    text = """(float[n,8,h,w] x) => (float y, float z) { a = Slice(x, zero, end, rows, two)
      b = Slice(a, zero, two, one) c = Slice(a, two, end, one) y = Sin(b) z = Sin(c) }"""
    assert cut(tmp_path, text, 1, x=(2, 8, 9, 8)) == ["Slice", "Split", "Sin", "Sin"]


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


HALVES = """(float[n,8,h,w] x) => (float y) { a = Relu(x) s = Shape(a)
  one = Constant<value_ints=[1]>() two = Constant<value_ints=[2]>()
  c = Gather<axis=0>(s, one) d = Add(c, one) e = Div(d, two)
  f = Mul(e, two) zero = Constant<value_ints=[0]>() p = Slice(a, zero, e, one)
  q = Slice(a, e, f, one) r = Conv(p, k) y = Concat<axis=1>(r, q) }"""


@pytest.mark.parametrize("opset", [11, 17])
def test_slices_by_computed_sizes_are_one_split(tmp_path: Path, opset: int) -> None:
    text = HALVES.replace("value_ints=[", "value = int64[1] {").replace("]>", "}>")
    source, out = written(tmp_path, model(text, {"k": (4, 4, 1, 1)}, opset)), tmp_path / "o.onnx"
    report = fold_onnx(source, out)
    assert_same(source, out, x=(2, 8, 3, 5))
    assert kinds(out) == ["Relu", "Split", "Conv", "Concat"]
    assert report.steps[0].detail == "Slice_9 + Slice_10"


@pytest.mark.parametrize("end", ["one, f", "e, six"])
def test_slices_that_overlap_or_leave_a_gap_stay(tmp_path: Path, end: str) -> None:
    text = HALVES.replace("q = Slice(a, e, f", f"q = Slice(a, {end}")
    text = text.replace("c = Gather", "six = Constant<value_ints=[6]>() c = Gather")
    source, out = written(tmp_path, model(text, {"k": (4, 4, 1, 1)})), tmp_path / "o.onnx"
    fold_onnx(source, out)
    assert_same(source, out, x=(2, 8, 3, 5))
    assert kinds(out) == ["Relu", "Slice", "Slice", "Conv", "Concat"]


def test_sizes_that_only_agree_by_chance_are_no_constants(tmp_path: Path) -> None:
    text = """(float[n,8,h,w] x) => (float y) { s = Shape(x) three = Constant<value_ints=[3]>()
      h = Gather<axis=0>(s, three) many = Constant<value_ints=[300]>() m = Min(h, many)
      zero = Constant<value_ints=[0]>() two = Constant<value_ints=[3]>()
      p = Slice(x, zero, m, two) y = Relu(p) }"""
    source = written(tmp_path, model(text, {}))
    report = fold_onnx(source, tmp_path / "o.onnx")
    assert not report.changed


@pytest.mark.parametrize("size", ["int64 {4}", "int64[2] {4, 4}", "int64 {3}"])
def test_a_sequence_of_parts_is_a_split(tmp_path: Path, size: str) -> None:
    text = f"""(float[n,8,h,w] x) => (float y) {{ a = Conv(x, k) m = Mul(a, f)
      b = Constant<value = {size}>() s = SplitToSequence<axis=1>(m, b)
      zero = Constant<value = int64 {{0}}>() last = Constant<value = int64 {{-1}}>()
      p = SequenceAt(s, zero) q = SequenceAt(s, last) r = Relu(p) y = Concat<axis=1>(r, q) }}"""
    made = model(text, {"k": (8, 8, 1, 1), "f": (8, 1, 1)})
    source, out = written(tmp_path, made), tmp_path / "o.onnx"
    fold_onnx(source, out)
    assert_same(source, out, x=(2, 8, 3, 5))
    assert kinds(out) == ["Conv", "Split", "Relu", "Concat"]


def test_a_sequence_that_is_read_whole_stays(tmp_path: Path) -> None:
    text = """(float[n,8,h,w] x) => (float y) { b = Constant<value = int64 {4}>()
      s = SplitToSequence<axis=1>(x, b) y = ConcatFromSequence<axis=1>(s) }"""
    assert not fold_onnx(written(tmp_path, model(text, {})), tmp_path / "o.onnx").changed
