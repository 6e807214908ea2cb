"""Layers inside If and Loop; the oracle is ONNX Runtime on the file itself, optimisations off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from helpers.onnx_texts import model, norm, run, written
from refold.errors import NotEquivalentError
from refold.onnx_files import bodies, fold_onnx
from refold.onnx_files.reading import subgraphs

WEIGHTS = {"w": (4, 4, 3, 3), **norm("n", 4)}
BRANCHES = """(float[n, 4, 6, 6] x, bool c) => (float[n, 4, 6, 6] y) {
  k = Relu(x)
  y = If(c) <
    then_branch = a () => (float[n, 4, 6, 6] p) {
      o = Conv<pads=[1,1,1,1]>(k, w) p = BatchNormalization(o, gn, bn, mn, vn) },
    else_branch = b () => (float[n, 4, 6, 6] q) {
      half = Constant<value_float=0.5>() q = Mul(k, half) }> }"""
LOOP = """(float[n, 4, 6, 6] x) => (float[n, 4, 6, 6] y) {
  m = Constant<value_int=3>() t = Constant<value = bool {1}>()
  y = Loop(m, t, x) <
    body = l (int64 i, bool go, float[n, 4, 6, 6] v) => (bool on, float[n, 4, 6, 6] r) {
      on = Identity(go) o = Conv<pads=[1,1,1,1]>(v, w) s = BatchNormalization(o, gn, bn, mn, vn)
      r = Tanh(s) }> }"""


def inner(path: Path) -> list[list[str]]:
    """Return the operators of every graph inside a node."""
    nodes = onnx.load(path).graph.node
    return [[n.op_type for n in below.node] for node in nodes for below in subgraphs(node)]


def equal(one: Path, other: Path, **more: Any) -> None:
    x = np.random.default_rng(1).standard_normal((2, 4, 6, 6)).astype(np.float32)
    for a, b in zip(run(one, x=x, **more), run(other, x=x, **more), strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-4, atol=2e-5)


def test_branches_that_read_values_and_weights_from_outside(tmp_path: Path) -> None:
    source, out = written(tmp_path, model(BRANCHES, WEIGHTS)), tmp_path / "out.onnx"
    report = fold_onnx(source, out)
    assert [step.where.split("_1")[1] for step in report.steps] == [".then_branch.o"]
    assert inner(out) == [["Conv"], ["Constant", "Mul"]]
    assert report.nodes_before == {"Relu": 1, "If": 1, "Conv": 1, "BatchNormalization": 1, "Mul": 1}
    assert report.nodes_after == {"Relu": 1, "If": 1, "Conv": 1, "Mul": 1}
    equal(source, out, c=np.array(True))
    equal(source, out, c=np.array(False))
    assert not list(onnx.load(out).graph.initializer)  # what nobody reads any more is gone
    onnx.checker.check_model(onnx.load(out), full_check=True)


def test_branches_that_read_weights_outside_the_file(tmp_path: Path) -> None:
    source, out = tmp_path / "net.onnx", tmp_path / "out.onnx"
    made = model(BRANCHES, WEIGHTS)
    onnx.save(made, source, save_as_external_data=True, location="weights", size_threshold=0)
    fold_onnx(source, out)
    assert inner(out) == [["Conv"], ["Constant", "Mul"]]
    equal(source, out, c=np.array(True))
    equal(source, out, c=np.array(False))


def test_a_loop_and_a_weight_that_others_read(tmp_path: Path) -> None:
    text = LOOP.replace("{\n  m =", "{\n  u = Conv<pads=[1,1,1,1]>(x, w) m =")
    text = text.replace("(m, t, x)", "(m, t, u)")
    source, out = written(tmp_path, model(text, WEIGHTS)), tmp_path / "out.onnx"
    fold_onnx(source, out)
    assert [sorted(kinds) for kinds in inner(out)] == [["Conv", "Identity", "Tanh"]]
    assert [tensor.name for tensor in onnx.load(out).graph.initializer if tensor.name == "w"]
    equal(source, out)


def test_a_body_within_a_body(tmp_path: Path) -> None:
    deep = BRANCHES.replace(
        "half = Constant<value_float=0.5>() q = Mul(k, half)",
        """q = If(c) <
          then_branch = d () => (float[n, 4, 6, 6] e) {
            f = Conv<pads=[1,1,1,1]>(k, w) e = BatchNormalization(f, gn, bn, mn, vn) },
          else_branch = g () => (float[n, 4, 6, 6] h) { h = Neg(k) }>""",
    )
    source, out = written(tmp_path, model(deep, WEIGHTS)), tmp_path / "out.onnx"
    report = fold_onnx(source, out)
    assert len(report.steps) == 2
    assert report.nodes_after["Conv"] == 2
    assert "BatchNormalization" not in report.nodes_after
    equal(source, out, c=np.array(True))
    equal(source, out, c=np.array(False))


def test_new_names_are_new_everywhere(tmp_path: Path) -> None:
    made = model(BRANCHES.replace("k = Relu(x)", "fresh = Relu(x) k = Relu(fresh)"), WEIGHTS)
    plain = fold_onnx(written(tmp_path, made), tmp_path / "plain.onnx")
    [body, _] = [b for n in onnx.load(tmp_path / "plain.onnx").graph.node for b in subgraphs(n)]
    taken = body.initializer[0].name
    assert plain.changed
    for node in made.graph.node:
        node.input[:] = [name.replace("fresh", taken) for name in node.input]
        node.output[:] = [name.replace("fresh", taken) for name in node.output]
    source, out = written(tmp_path, made, "clash.onnx"), tmp_path / "out.onnx"
    fold_onnx(source, out)
    [body, _] = [b for n in onnx.load(out).graph.node for b in subgraphs(n)]
    assert taken not in {tensor.name for tensor in body.initializer}
    equal(source, out, c=np.array(True))


def test_what_cannot_be_checked_stays_byte_for_byte(tmp_path: Path) -> None:
    text = BRANCHES.replace("k = Relu(x)", "k = com.microsoft.Inverse(x)")
    source, out = written(tmp_path, model(text, WEIGHTS)), tmp_path / "out.onnx"
    report = fold_onnx(source, out)
    assert [item.where for item in report.kept] == ["If_1.then_branch"]
    assert "cannot be run alone" in report.kept[0].reason
    assert out.read_bytes() == source.read_bytes()


def test_a_wrong_fold_of_a_body_is_left(tmp_path: Path) -> None:
    def wrong(source: Path, out: Path) -> Any:
        raise NotEquivalentError("they differ")

    file = bodies.read(written(tmp_path, model(LOOP, WEIGHTS)))
    before = file.model.SerializeToString(deterministic=True)
    done = bodies.fold_bodies(file, wrong)
    assert done.steps == ()
    assert done.kept[0].reason == "its body gave another answer and stays: they differ"
    assert file.model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("text", ["{ y = Relu(x) }"])
def test_files_without_bodies_are_not_asked(tmp_path: Path, text: str) -> None:
    made = model(f"(float[n, 3] x) => (float[n, 3] y) {text}", {})
    file = bodies.read(written(tmp_path, made))
    assert bodies.fold_bodies(file, None) == ((), ())  # type: ignore[arg-type]
