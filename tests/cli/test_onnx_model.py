"""MODEL may be an .onnx file that anybody wrote."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.onnx_texts import kinds, model, norm, written
from refold.cli.app import main

TEXT = """(float[n, 3, h, w] x) => (float[n, 8, h, w] y) {
  a = Conv<pads=[1,1,1,1]>(x, w) b = BatchNormalization(a, gn, bn, mn, vn) y = Relu(b) }"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(written(tmp_path, model(TEXT, {"w": (8, 3, 3, 3), **norm("n", 8)})))


Capture = pytest.CaptureFixture[str]


def test_convert_and_verify(file: str, tmp_path: Path, capfd: Capture) -> None:
    out = tmp_path / "out.onnx"
    assert main(["convert", file, "-o", str(out)]) == 0
    said = capfd.readouterr().out
    assert "BatchNormalization" in said
    assert "equal in ONNX Runtime" in said
    assert kinds(out) == ["Conv", "Relu"]
    assert main(["verify", file, str(out), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["is_equal"]
    wrong = written(tmp_path, model(TEXT, {"w": (8, 3, 3, 3), **norm("n", 8)}), "wrong.onnx")
    wrong.write_bytes(out.read_bytes().replace(b"Relu", b"Tanh"))
    assert main(["verify", file, str(wrong)]) == 1
    assert "not equal" in capfd.readouterr().out


FIXED = "(float[{0}] x) => (float y) {{ y = Conv<pads=[1,1,1,1]>(x, w) }}"


def test_files_of_other_sizes(tmp_path: Path, capfd: Capture) -> None:
    """Two files are compared on what both take; where there is nothing it is said."""
    weights = {"w": (8, 3, 3, 3)}
    one = written(tmp_path, model(FIXED.format("1, 3, 9, 9"), weights), "one.onnx")
    two = written(tmp_path, model(FIXED.format("n, 3, 9, 9"), weights), "two.onnx")
    other = written(tmp_path, model(FIXED.format("1, 3, 8, 8"), weights), "other.onnx")
    for first, second in ((one, two), (two, one)):
        assert main(["verify", str(first), str(second)]) == 0
        assert "in 1 run (bound" in capfd.readouterr().out
    assert main(["verify", str(one), str(other)]) == 2
    assert "they have no inputs in common" in capfd.readouterr().err
    wide = written(tmp_path, model(FIXED.format("1, 3, 9, 9"), {"w": (9, 3, 3, 3)}), "wide.onnx")
    assert main(["verify", str(one), str(wide), "--json"]) == 1
    (trial,) = json.loads(capfd.readouterr().out)["trials"]
    assert trial["error"] is None
    assert trial["note"] == "its output 'y' is 1 x 9 x 9 x 9 instead of 1 x 8 x 9 x 9"


def test_a_name_that_is_no_text(file: str, tmp_path: Path, capfd: Capture) -> None:
    odd = tmp_path / os.fsdecode(b"\xff.onnx")
    try:
        odd.write_bytes(Path(file).read_bytes())
    except OSError:
        pytest.skip("the file system takes text alone")
    assert main(["convert", str(odd), "-o", str(tmp_path / "out.onnx")]) == 2
    assert "it takes no name that is not UTF-8; rename the file" in capfd.readouterr().err


def test_a_batch_that_the_file_does_not_take(tmp_path: Path, capfd: Capture) -> None:
    made = written(tmp_path, model(FIXED.format("1, 3, 9, 9"), {"w": (8, 3, 3, 3)}), "one.onnx")
    assert main(["bench", str(made), "--batch", "1,4", "--rounds", "1"]) == 2
    assert "one.onnx fixes the batch to 1, not 4" in capfd.readouterr().err


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_a_file_of_another_size_than_the_network_ran_on(
    suffix: str, tmp_path: Path, capfd: Capture, net: Callable[[str], str]
) -> None:
    made = written(tmp_path, model(FIXED.format("1, 3, 9, 9"), {"w": (8, 3, 3, 3)}), "one.onnx")
    if suffix == ".xml":
        assert main(["convert", str(made), "-o", str(made.with_suffix(suffix))]) == 0
    words = ["verify", net("branchy"), str(made.with_suffix(suffix)), "--input-size"]
    assert main([*words, "3x16x16"]) == 2
    said = capfd.readouterr().err
    assert f"one{suffix} takes 1 x 3 x 9 x 9" in said
    assert "was run on 1 x 3 x 16 x 16: give --input-size 3x9x9 --batch 1" in said
    assert main([*words, "3x9x9"]) == 1  # it runs, and is another network
    assert "not equal" in capfd.readouterr().out


def test_convert_to_openvino(file: str, tmp_path: Path, capfd: Capture) -> None:
    out = tmp_path / "out.xml"
    assert main(["convert", file, "-o", str(out), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["nodes_after"] == {"Conv": 1, "Relu": 1}
    assert main(["verify", file, str(out)]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "out.bin", "out.xml"]


def test_inspect(file: str, capfd: Capture) -> None:
    assert main(["inspect", file]) == 0
    assert "1 folded; nodes 3 -> 2" in capfd.readouterr().out
    assert main(["inspect", file, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["steps"][0]["where"] == "Conv_0"
    assert found["provenance"] == {}


def test_bench(file: str, capfd: Capture) -> None:
    assert main(["bench", file, "--input-size", "3x16x16", "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)["rows"]
    assert [(row["runtime"], row["model"]) for row in rows] == [
        ("onnxruntime", "before"),
        ("onnxruntime", "after"),
    ]


DEEP = """(float[n, 4, 8, 8] x) => (float[n, 4, 8, 8] y) {
  r = Relu(x) a = Conv<pads=[1,1,1,1]>(r, wa) b = Relu(a) c = Conv<pads=[1,1,1,1]>(b, wc)
  y = Add(c, r) }"""


@pytest.fixture
def deep(tmp_path: Path) -> str:
    weights = {"wa": (4, 4, 3, 3), "wc": (4, 4, 3, 3)}
    return str(written(tmp_path, model(DEEP, weights), "deep.onnx"))


def test_prune(deep: str, tmp_path: Path, capfd: Capture) -> None:
    out = tmp_path / "out.onnx"
    words = ["prune", deep, "--ratio", "0.5", "--round-to", "1", "-o", str(out)]
    assert main(words) == 0
    said = capfd.readouterr()
    assert "4 -> 2 channels" in said.out
    assert "chosen channels are silenced: equal in ONNX Runtime" in said.out
    assert "less accurate until it is trained again" in said.err
    assert main([*words[:-2], "--measure", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["cost_after"]["parameters"] == found["cost_before"]["parameters"] // 2
    assert [row["model"] for row in found["timings"]["rows"]] == ["folded", "after"]


def test_remove_residuals(deep: str, tmp_path: Path, capfd: Capture) -> None:
    out = tmp_path / "out.xml"
    assert main(["remove-residuals", deep, "-o", str(out)]) == 0
    assert "removed: 1" in capfd.readouterr().out
    assert main(["verify", deep, str(out)]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["convert", "{}", "-o", "a.pt2"], "end it in one of .onnx .xml"),
        (["convert", "{}", "-o", "a.onnx", "--opset", "17"], "--opset cannot change it"),
        (["convert", "none.onnx", "-o", "a.onnx"], "there is no file 'none.onnx'"),
        (["inspect", "{}", "--checkpoint", "a.pt"], "--checkpoint cannot change it"),
        (["verify", "{}", "none.onnx"], "there is no file"),
        (["bench", "{}", "--runtime", "eager"], "give one of onnxruntime, openvino"),
        (["bench", "{}", "--device", "cuda"], "is a finished file: --device cannot change it"),
        (["bench", "{}", "--input-size", "4x8x8"], "fixes the size of 'x' to 3x8x8, not 4x8x8"),
        (["prune", "{}", "--ratio", "0.5", "--importance", "bn"], "give --importance l1"),
        (["prune", "{}", "--latency", "0.5"], "give --ratio, --params or --macs"),
        (["prune", "{}", "--ratio", "0.5", "--report", "a.html"], "leave it out"),
        (["prune", "{}", "--ratio", "0.5", "-o", "a.pt2"], "end it in one of .onnx .xml"),
        (["prune", "{}", "--ratio", "0.5"], "no channel of this file can be dropped: Conv_0"),
        (["remove-residuals", "{}", "--checkpoint", "a.pt"], "--checkpoint cannot change it"),
        (["remove-residuals", "{}", "--runtime", "eager"], "give one of onnxruntime, openvino"),
        (["tune", "{}", "-o", "a.json"], "is an ONNX file, which convert, inspect"),
    ],
)
def test_what_it_cannot_do(
    file: str, words: list[str], said: str, capfd: Capture, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main([word.format(file) for word in words]) == 2
    errors: Any = capfd.readouterr().err
    assert said in errors
    assert len(errors.strip().splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_convert_takes_no_size(file: str, tmp_path: Path, capfd: Capture) -> None:
    out = tmp_path / "out.onnx"
    assert main(["convert", file, "-o", str(out), "--input-size", "3x16x16"]) == 2
    assert "leave --input-size out" in capfd.readouterr().err
    assert not out.exists()
