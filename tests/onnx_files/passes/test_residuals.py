"""Residuals removed from an ONNX file; the oracle is ONNX Runtime on the file itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from helpers.nightly import some
from helpers.onnx_graphs import random_model
from helpers.onnx_texts import assert_same, kinds, model, written
from refold.errors import NotEquivalentError, RefusedError
from refold.onnx_files import prune_onnx, remove_residuals_onnx
from refold.onnx_files.passes import residuals
from refold.onnx_files.trials import session

BLOCK = """(float[n, 4, 8, 8] x) => (float[n, 4, 8, 8] y) {
  r = %s a = Conv<pads=[1,1,1,1]>(r, wa, ba) b = %s c = Conv<pads=[1,1,1,1]>(b, wc) y = Add(c, r)
}"""
WEIGHTS = {"wa": (4, 4, 3, 3), "ba": (4,), "wc": (4, 4, 3, 3)}


def removed(tmp_path: Path, made: Any, **options: Any) -> list[str]:
    source, out = written(tmp_path, made), tmp_path / "out.onnx"
    remove_residuals_onnx(source, out, **options)
    assert_same(source, out, x=(3, 4, 8, 8))
    onnx.checker.check_model(onnx.load(out), full_check=True)
    return kinds(out)


def test_a_shortcut_that_is_positive_rides_through_the_relu(tmp_path: Path) -> None:
    made = model(BLOCK % ("Relu(x)", "Relu(a)"), WEIGHTS)
    assert removed(tmp_path, made) == ["Relu", "Conv", "Relu", "Conv"]


@pytest.mark.parametrize(
    ("bend", "kinds"),
    [
        ("Relu(a)", ["PRelu"]),
        ("LeakyRelu<alpha=0.2>(a)", ["PRelu"]),
        ("Clip(a, low, high)", ["Max", "Min"]),
    ],
)
def test_one_that_is_not_gets_functions_by_channel(
    tmp_path: Path, bend: str, kinds: list[str]
) -> None:
    made = model(BLOCK % ("Identity(x)", bend), WEIGHTS)
    for name, value in (("low", 0.0), ("high", 0.5)):
        array = np.array(value, np.float32)
        made.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    assert removed(tmp_path, made) == ["Conv", *kinds, "Conv"]


def test_what_stays_and_why(tmp_path: Path) -> None:
    made = model(BLOCK % ("Identity(x)", "Sigmoid(a)"), WEIGHTS)
    assert "Add" in removed(tmp_path, made)
    source = tmp_path / "net.onnx"
    done = remove_residuals_onnx(source)
    assert done.kept[0].where == "Add_4"
    assert "changes every value" in done.kept[0].reason
    with pytest.raises(RefusedError, match="Add_4"):
        remove_residuals_onnx(source, tmp_path / "strict.onnx", strict=True)
    assert not (tmp_path / "strict.onnx").exists()


def test_a_step_that_onnx_cannot_write_is_left_and_the_others_are_not(tmp_path: Path) -> None:
    """Opset 7 has no bounds by channel."""
    text = """(float[n, 4, 8, 8] x) => (float[n, 4, 8, 8] y) {
      a = Conv<pads=[1,1,1,1]>(x, wa) b = Clip<min=0.0, max=0.5>(a) c = Conv<pads=[1,1,1,1]>(b, wc)
      s = Add(c, x) r = Relu(s)
      d = Conv<pads=[1,1,1,1]>(r, wa) e = Relu(d) f = Conv<pads=[1,1,1,1]>(e, wc) y = Add(r, f) }"""
    made = model(text, {"wa": (4, 4, 3, 3), "wc": (4, 4, 3, 3)}, opset=7)
    assert removed(tmp_path, made).count("Add") == 1
    [kept] = remove_residuals_onnx(tmp_path / "net.onnx").kept
    assert kept.where == "Add_3"
    assert "bounds that differ by channel" in kept.reason


def test_a_wrong_result_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Naive(residuals.ResidualPass):
        def run(self) -> None:
            for node in list(self.lifter.capture.graph.nodes):
                if node.name.startswith("add"):
                    self.editor.replace(node, node.args[0])
                    self.starts.append(node.name)

    monkeypatch.setattr(residuals, "ResidualPass", Naive)
    source = written(tmp_path, model(BLOCK % ("Relu(x)", "Relu(a)"), WEIGHTS))
    with pytest.raises(NotEquivalentError, match=r"differs from net.onnx first at the Add"):
        remove_residuals_onnx(source, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.slow
@pytest.mark.parametrize("block", some(range(500), keep=1))
def test_random_files(tmp_path: Path, block: int) -> None:
    """Each verb itself runs both files, at two sizes."""
    for seed in range(2 * block, 2 * block + 2):
        source = written(tmp_path, random_model(seed))
        session(source)
        remove_residuals_onnx(source)
        try:
            prune_onnx(source, ratio=0.4, round_to=1, remove_residuals=bool(seed % 2))
        except RefusedError as error:
            assert str(error).startswith("no channel")  # noqa: PT017


GATES = {
    "HardSigmoid": "k = HardSigmoid<alpha=0.2>(j)",
    "its old form": "b = Add(j, three) e = Clip(b, zero, six) k = Div(e, six)",
    "Tanh": "k = Tanh(j)",
}
CLOSED = {
    "half open": "b = Sigmoid(j) k = Mul(b, three)",
    "never flat": "k = Softplus(j)",
}


def gated(gate: str) -> Any:
    text = f"""(float[n, 4, 8, 8] x) => (float[n, 4, 8, 8] y) {{
      r = Relu(x) a = Conv<pads=[1,1,1,1]>(r, wa, ba) b0 = Relu(a) g = GlobalAveragePool(b0)
      h = Conv(g, w1, b1) i = Relu(h) j = Conv(i, w2) {gate} c = Mul(b0, k)
      d = Conv<pads=[1,1,1,1]>(c, wd) y = Add(d, r) }}"""
    weights = {"w1": (2, 8, 1, 1), "b1": (2,), "w2": (8, 2, 1, 1)}
    made = model(text, {"wa": (8, 4, 3, 3), "ba": (8,), "wd": (4, 8, 3, 3), **weights})
    for word, number in (("zero", 0.0), ("three", 3.0), ("six", 6.0)):
        array = np.array(number, np.float32)
        made.graph.initializer.append(onnx.numpy_helper.from_array(array, word))
    return made


@pytest.mark.parametrize("name", some(GATES, keep=2))
def test_a_gate_may_end_in_whatever_is_one_for_large_numbers(tmp_path: Path, name: str) -> None:
    assert "Add" not in removed(tmp_path, gated(GATES[name]))[-1:]


@pytest.mark.parametrize("name", CLOSED)
def test_one_that_is_not_keeps_its_residual(tmp_path: Path, name: str) -> None:
    """The control: such a gate would not hand the shortcut on as it is."""
    assert removed(tmp_path, gated(CLOSED[name]))[-1] == "Add"
    [kept] = remove_residuals_onnx(tmp_path / "net.onnx").kept
    assert "1 for large numbers" in kept.reason
