"""Channels dropped from an ONNX file; the oracle is ONNX Runtime on a file silenced by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from helpers.nightly import some
from helpers.onnx_texts import assert_same, kinds, model, norm, run, written
from refold.errors import InputError, RefusedError
from refold.onnx_files import prune_onnx

TEXT = """(float[n, 3, 8, 8] x) => (float[n, 4, 4, 4] y) {
  a = Conv<pads=[1,1,1,1]>(x, wa, ba) b = Relu(a) c = MaxPool<kernel_shape=[2,2], strides=[2,2]>(b)
  d = Conv<pads=[1,1,1,1]>(c, wd, bd) y = Relu(d) }"""
WEIGHTS = {"wa": (8, 3, 3, 3), "ba": (8,), "wd": (4, 8, 3, 3), "bd": (4,)}


def silenced(made: Any, channels: list[int], *, bias: bool = True) -> Any:
    """Return a model whose first layer gives 0 in some channels, whatever it reads."""
    copied = onnx.ModelProto()
    copied.CopyFrom(made)
    for tensor in copied.graph.initializer:
        if tensor.name == "wa" or (tensor.name == "ba" and bias):
            array = numpy_helper.to_array(tensor).copy()
            array[channels] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return copied


def bright(made: Any) -> Any:
    """Return a model whose first layer adds 1 to every channel: its ReLU is not 0 in a dead one."""
    [bias] = [tensor for tensor in made.graph.initializer if tensor.name == "ba"]
    bias.CopyFrom(numpy_helper.from_array(np.ones(8, np.float32), "ba"))
    return made


def layers(path: Path) -> list[list[int]]:
    """Return the shapes of the kernels."""
    made = onnx.load(path).graph
    found = {tensor.name: list(tensor.dims) for tensor in made.initializer}
    return [found[node.input[1]] for node in made.node if node.op_type == "Conv"]


def test_the_least_important_channels_go(tmp_path: Path) -> None:
    made, out = bright(model(TEXT, WEIGHTS)), tmp_path / "out.onnx"
    done = prune_onnx(written(tmp_path, made), out, ratio=0.5, round_to=1)
    [wa] = [numpy_helper.to_array(t) for t in made.graph.initializer if t.name == "wa"]
    least = np.argsort(np.abs(wa).sum((1, 2, 3)))[:4]
    assert done.silenced == {"Conv_0": sorted(least.tolist())}
    assert layers(out) == [[4, 3, 3, 3], [4, 4, 3, 3]]
    assert kinds(out) == ["Conv", "Relu", "MaxPool", "Conv", "Relu"]
    masked = written(tmp_path, silenced(made, least.tolist()), "masked.onnx")
    assert_same(masked, out, x=(3, 3, 8, 8))
    naive = written(tmp_path, silenced(made, least.tolist(), bias=False), "naive.onnx")
    with pytest.raises(AssertionError):  # filters without their biases
        assert_same(naive, out, x=(3, 3, 8, 8))
    assert done.cost_before.macs == 64 * 8 * 27 + 16 * 4 * 72
    assert done.cost_after.macs == 64 * 4 * 27 + 16 * 4 * 36
    assert [step.detail for step in done.steps] == ["8 -> 4 channels"]


def test_dead_channels_alone(tmp_path: Path) -> None:
    made = silenced(model(TEXT, WEIGHTS), [1, 5])
    source, out = written(tmp_path, made), tmp_path / "out.onnx"
    done = prune_onnx(source, out, ratio=0, round_to=1)
    assert done.silenced == {}
    assert layers(out) == [[6, 3, 3, 3], [4, 6, 3, 3]]
    assert_same(source, out, x=(2, 3, 8, 8))


def test_a_dead_channel_that_the_border_shows_stays(tmp_path: Path) -> None:
    made = bright(silenced(model(TEXT, WEIGHTS), [1, 5], bias=False))
    done = prune_onnx(written(tmp_path, made), ratio=0, round_to=1)
    assert done.steps == ()
    assert any("2 channels are constant but not 0" in item.reason for item in done.kept)


def test_a_layer_padded_unevenly(tmp_path: Path) -> None:
    text = TEXT.replace("pads=[1,1,1,1]>(x", "pads=[2,1,0,1]>(x")
    made, out = model(text, WEIGHTS), tmp_path / "out.onnx"
    done = prune_onnx(written(tmp_path, made), out, ratio=0.5, round_to=1)
    assert layers(out) == [[4, 3, 3, 3], [4, 4, 3, 3]]
    assert [step.detail for step in done.steps] == ["8 -> 4 channels"]
    masked = written(tmp_path, silenced(made, done.silenced["Conv_0"]), "masked.onnx")
    assert_same(masked, out, x=(3, 3, 8, 8))


def test_names_metadata_and_strange_nodes_stay(tmp_path: Path) -> None:
    text = """(float[n, 3, 8, 8] x) => (float[n, 4, 8, 8] y, float[n, 3, 8, 8] z) {
      z = com.microsoft.Gelu(x) a = Conv<pads=[1,1,1,1]>(z, wa, ba) b = LeakyRelu<alpha=0.3>(a)
      y = Conv(b, wd) }"""
    made = model(text, {"wa": (8, 3, 3, 3), "ba": (8,), "wd": (4, 8, 1, 1)})
    made.metadata_props.add(key="from", value="elsewhere")
    made.graph.value_info.append(
        onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, [None, 8, 8, 8])
    )
    out = tmp_path / "out.onnx"
    prune_onnx(written(tmp_path, made), out, ratio=0.5, round_to=1)
    found = onnx.load(out)
    assert [node.name for node in found.graph.node] == [node.name for node in made.graph.node]
    assert found.metadata_props == made.metadata_props
    assert found.graph.input == made.graph.input
    assert list(run(out, x=np.zeros((1, 3, 8, 8), np.float32))[0].shape) == [1, 4, 8, 8]


@pytest.mark.slow
def test_budgets_floors_and_residuals(tmp_path: Path) -> None:
    text = """(float[n, 8, 8, 8] x) => (float[n, 8, 8, 8] y) {
      a = Conv<pads=[1,1,1,1]>(x, wa) b = BatchNormalization(a, gn, bn, mn, vn) r = Relu(b)
      c = Conv<pads=[1,1,1,1]>(r, wc) d = Relu(c) e = Conv<pads=[1,1,1,1]>(d, we) s = Add(r, e)
      t = Relu(s) y = Conv(t, wy) }"""
    weights = {"wa": (8, 8, 3, 3), "wc": (8, 8, 3, 3), "we": (8, 8, 3, 3), "wy": (8, 8, 1, 1)}
    source = written(tmp_path, model(text, weights | norm("n", 8)))
    half = prune_onnx(source, params=0.8, round_to=1)
    assert half.cost_after.parameters <= 0.8 * half.cost_before.parameters
    assert [step.where for step in half.steps] == ["Conv_3"]
    out = tmp_path / "out.onnx"
    free = prune_onnx(source, out, macs=0.6, round_to=1, remove_residuals=True)
    assert free.cost_after.macs is not None
    assert free.cost_before.macs is not None
    assert free.cost_after.macs <= 0.6 * free.cost_before.macs
    assert "Add" not in kinds(out)
    assert prune_onnx(source, ratio=0.99, floor={"Conv_3": 6}, round_to=1).steps[0].after == 6  # type: ignore[attr-defined]
    with pytest.raises(RefusedError, match="dropping channels alone takes this network to"):
        prune_onnx(source, params=0.1)


def test_what_is_refused(tmp_path: Path) -> None:
    free = TEXT.replace("8, 8]", "h, w]").replace("4, 4]", "i, j]")
    source, out = written(tmp_path, model(free, WEIGHTS)), tmp_path / "out.onnx"
    with pytest.raises(InputError, match="multiply-adds are no number"):
        prune_onnx(source, out, macs=0.5)
    with pytest.raises(InputError, match="give one of ratio"):
        prune_onnx(source, out)
    text = "(float[n, 3] x) => (float[n, 3] y) { y = MatMul(x, w) }"
    with pytest.raises(RefusedError, match="MatMul_0: its channels are an output"):
        prune_onnx(written(tmp_path, model(text, {"w": (3, 3)})), out, ratio=0.5)
    text = """(float[n, 3] x) => (uint8[n, 3] y) {
      s = Constant<value_float=0.1>() z = Constant<value = uint8 {0}>()
      y = QuantizeLinear(x, s, z) }"""
    with pytest.raises(RefusedError, match="it is quantized"):
        prune_onnx(written(tmp_path, model(text, {})), out, ratio=0.5)
    assert not out.exists()


WRITTEN_OUT = {
    "SiLU": "b = Sigmoid(a) c = Mul(a, b)",
    "quick GELU": "q = Mul(a, half) b = Sigmoid(q) c = Mul(b, a)",
    "GELU": "b = Div(a, half) e = Erf(b) g = Add(e, one) h = Mul(a, g) c = Mul(h, half)",
    "hard swish": "b = HardSigmoid<alpha=0.2>(a) c = Mul(a, b)",
    "its old form": "b = Add(a, one) e = Clip(b, zero, one) g = Div(e, half) c = Mul(a, g)",
    "Mish": "b = Softplus(a) e = Tanh(b) c = Mul(a, e)",
    "one call": "c = Softsign(a)",
    "threshold": "c = ThresholdedRelu(a)",
    "not 0 at 0": "b = Sigmoid(a) c = Sub(b, half)",
}


@pytest.mark.parametrize("name", some(WRITTEN_OUT, keep=("SiLU", "GELU", "hard swish")))
def test_functions_of_several_nodes_keep_channels_apart(tmp_path: Path, name: str) -> None:
    text = f"""(float[n, 3, 8, 8] x) => (float[n, 4, 8, 8] y) {{
      a = Conv<pads=[1,1,1,1]>(x, wa, ba) {WRITTEN_OUT[name]}
      d = Conv<pads=[1,1,1,1]>(c, wd, bd) y = Relu(d) }}"""
    made, out = model(text, WEIGHTS), tmp_path / "out.onnx"
    for word, number in (("zero", 0.0), ("half", 0.5), ("one", 1.0)):
        array = np.array(number, np.float32)
        made.graph.initializer.append(numpy_helper.from_array(array, word))
    done = prune_onnx(written(tmp_path, made), out, ratio=0.5, round_to=1)
    assert [step.detail for step in done.steps] == ["8 -> 4 channels"]
    [gone] = done.silenced.values()
    masked = written(tmp_path, silenced(made, gone), "masked.onnx")
    assert_same(masked, out, x=(3, 3, 8, 8))


@pytest.mark.parametrize("function", ["b = Cos(a) c = Mul(a, b)", "b = Exp(a) c = Mul(a, b)"])
def test_a_second_reader_or_another_node_keeps_them(tmp_path: Path, function: str) -> None:
    """The control: `Cos` is not known, and what `Exp` gives is an output as well."""
    ends = "float[n, 4, 8, 8] y" + (", float[n, 8, 8, 8] b" if "Exp" in function else "")
    text = f"""(float[n, 3, 8, 8] x) => ({ends}) {{
      a = Conv<pads=[1,1,1,1]>(x, wa, ba) {function}
      d = Conv<pads=[1,1,1,1]>(c, wd, bd) y = Relu(d) }}"""
    with pytest.raises(RefusedError, match="Conv_0"):
        prune_onnx(written(tmp_path, model(text, WEIGHTS)), ratio=0.5, round_to=1)
