"""`refold convert` writes what was asked for and says so; `refold inspect FILE` reads it back."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from helpers.nightly import rare
from refold.cli.app import main

pytestmark = pytest.mark.slow

NET = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
    def forward(self, image):
        return {"score": self.head(self.norm(self.conv(image)).mean((2, 3)))}
def build():
    return Net()
def build_one():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Unflatten(0, (1, 1)), nn.Flatten(0, 1))
"""


@pytest.fixture
def net(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(NET)
    return f"{tmp_path / 'net.py'}:build"


def test_choices_reach_the_file_and_are_said(
    tmp_path: Path, net: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.onnx"
    words = ["convert", net, "-o", str(file), "--input-size", "3x8x8", "--live-statistics"]
    words += ["--dynamic", "data:0=n,2=h", "--opset", "18"]
    assert main([*words, "--input-names", "data", "--output-names", "answer"]) == 0
    said = capfd.readouterr().err
    assert "input data: n x 3 x h x 8" in said
    assert "assumed" not in said
    model = onnx.load(file)
    assert [value.name for value in [*model.graph.input, *model.graph.output]] == ["data", "answer"]
    assert model.opset_import[0].version == 18
    assert main(["inspect", str(file)]) == 0
    told = capfd.readouterr().out
    assert "written by refold" in told
    assert f"source: {Path(net).name}" in told
    assert "folds: 1" in told
    assert "in float64" in told
    assert main(["inspect", str(file), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["provenance"]["source"] == Path(net).name


@pytest.mark.parametrize("suffix", ["onnx", "pt2", *rare("xml", "safetensors")])
def test_a_file_in_float16_is_verified_as_one(
    tmp_path: Path, net: str, capfd: pytest.CaptureFixture[str], suffix: str
) -> None:
    file, size = tmp_path / f"a.{suffix}", ["--input-size", "3x8x8", "--live-statistics"]
    assert main(["convert", net, "-o", str(file), *size, "--half"]) == 0
    assert main(["inspect", str(file)]) == 0
    assert "precision: float16" in capfd.readouterr().out
    assert main(["verify", net, str(file), *size]) == 0
    assert main(["verify", net, str(file), *size, "--seed", "1"]) == 1  # other statistics
    assert "not equal" in capfd.readouterr().out


def test_what_was_assumed_and_fixed_is_said(
    tmp_path: Path, net: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", f"{net}_one", "-o", str(tmp_path / "a.onnx")]) == 0
    said = capfd.readouterr().err
    assert "note: a.onnx takes only a batch of 1" in said
    assert "assuming an input of 3x224x224" in said
    assert "input input: 1 x 3 x 224 x 224" in said


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--dynamic", "image:first=batch"], "names no axes: write none, batch"),
        (["--dynamic", "sometimes"], "is not a choice"),
        (["--opset", "3"], "opset 3 is not one"),
        (["--input-names", "a,b"], "input_names must be one name"),
    ],
)
def test_wishes_that_cannot_be(
    tmp_path: Path, net: str, words: list[str], reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.onnx"
    assert main(["convert", net, "-o", str(file), "--input-size", "3x8x8", *words]) == 2
    assert reason in capfd.readouterr().err
    assert not file.exists()


def test_wishes_of_other_formats_are_refused_before_any_work(
    tmp_path: Path, net: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for words in (["--opset", "17"], ["--input-names", "x"]):
        assert main(["convert", net, "-o", str(tmp_path / "a.pt2"), *words]) == 2
        assert capfd.readouterr().err.count("\n") == 1  # nothing was built


def test_a_stranger_s_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.xml").write_text("<net/>")
    assert main(["inspect", str(tmp_path / "a.xml")]) == 0
    assert "does not say where it comes from" in capfd.readouterr().out
    (tmp_path / "b.onnx").write_text("no network")
    assert main(["inspect", str(tmp_path / "b.onnx")]) == 2
    assert "cannot be read as ONNX" in capfd.readouterr().err
