"""The page of an .onnx file: its own nodes, with numbers also where torch has no layer for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import refold
from helpers.onnx_texts import model, norm, written
from refold.cli.app import main
from refold.errors import RefusedError
from refold.reporting import Comparison, report_onnx
from refold.reporting.facts import gather
from reporting.nets import facts_in

TEXT = """(float[n, 3, 8, 8] x) => (float[n, 4, 8, 8] y) {
  a = Conv<pads=[1,1,1,1]>(x, wa) b = BatchNormalization(a, gn, bn, mn, vn)
  c = Softsign(b) d = Conv(c, wd) e = Conv(c, we) f = Add(d, e) y = Relu(f) }"""
WEIGHTS = {"wa": (8, 3, 3, 3), "wd": (4, 8, 1, 1), "we": (4, 8, 1, 1), **norm("n", 8)}


def test_the_page_of_a_file(tmp_path: Path) -> None:
    source, page = written(tmp_path, model(TEXT, WEIGHTS)), tmp_path / "net.html"
    account = report_onnx(source, page)
    assert len(account.steps) == 2
    facts = facts_in(page)
    assert facts["name"] == "net.onnx"
    before, after = (facts[side]["boxes"] for side in ("before", "after"))
    titles = [box["title"] for box in after]
    assert titles == ["x", "Conv 3×3", "softsign", "Conv 1×1", "relu", "output"]
    assert [before[n]["place"] for n in after[1]["from"]] == ["Conv_0", "BatchNormalization_1"]
    assert [before[n]["title"] for n in after[3]["from"]] == ["Conv 1×1", "Conv 1×1", "+"]
    assert all(box["error"] < 1e-12 for box in after[1:5])
    assert facts["proof"]["exact"] < 1e-12
    assert 0 < facts["proof"]["shipped"] < 1e-5  # float32, in the runtime
    assert facts["before"]["macs"] == 64 * (8 * 27 + 2 * 4 * 8)
    assert facts["after"]["macs"] == 64 * (8 * 27 + 4 * 8)
    assert facts["after"]["norms"] == 0


def test_what_only_the_runtime_knows_is_shown_too(tmp_path: Path) -> None:
    text = """(float[n, 4, 6] x) => (float[n, 4, 6] y, int64[n, 1, 6] i) {
      v, i = TopK<axis=1>(x, k) a = Conv(x, w) y = Add(a, v) }"""
    made = model(text, {"w": (4, 4, 1)})
    array = torch.tensor([1]).numpy()
    from onnx import numpy_helper

    made.graph.initializer.append(numpy_helper.from_array(array, "k"))
    page = tmp_path / "net.html"
    report_onnx(written(tmp_path, made), page)
    boxes = facts_in(page)["before"]["boxes"]
    assert "TopK" in [box["title"] for box in boxes]
    [total] = [box for box in boxes if box["kind"] == "sum"]
    assert total["peak"] > 0


def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, page = written(tmp_path, model(TEXT, WEIGHTS)), tmp_path / "net.html"
    assert main(["report", str(source), "-o", str(page)]) == 0
    assert "2 folded" in capfd.readouterr().out
    assert main(["report", str(source), "-o", str(page), "--measure"]) == 2
    assert "--measure times a network in PyTorch" in capfd.readouterr().err
    text = """(float[n, 3] x) => (uint8[n, 3] y) {
      s = Constant<value_float=0.1>() z = Constant<value = uint8 {0}>()
      y = QuantizeLinear(x, s, z) }"""
    with pytest.raises(RefusedError, match="it is quantized"):
        report_onnx(written(tmp_path, model(text, {})), page)


def test_a_step_that_leaves_a_chain_shares_its_boxes() -> None:
    """A depthwise and a pointwise layer stay two: each is compared with its own norm."""
    layers = [nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)]
    net, x = nn.Sequential(*layers, nn.BatchNorm2d(4)).eval(), torch.randn(1, 4, 8, 8)
    for layer in (net[1], net[3]):
        nn.init.uniform_(layer.running_mean, 0.5, 1)
        nn.init.uniform_(layer.weight, 0.5, 2)
    plan = refold.plan(net, x)
    facts = gather(
        Comparison(
            name="", before=net, after=plan.model, inputs=(x,), account=plan,
            fold=refold.reparameterize,
        )
    )  # fmt: skip
    boxes = {box["place"]: box for box in facts["after"]["boxes"]}
    assert boxes["0"]["from"] == [1, 2]
    assert boxes["2"]["from"] == [3, 4]
    assert boxes["0"]["error"] < 1e-12
    assert boxes["2"]["error"] < 1e-12
