"""Files that are cut off, altered or lie: one clear error, and nothing is written."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.external_data_helper import convert_model_to_external_data

from helpers.onnx_texts import assert_same, kinds, model, norm, written
from refold.errors import InputError, RefoldError
from refold.onnx_files import fold_onnx

TEXT = """(float[n, 3, h, w] x) => (float[n, 8, h, w] y) {
  a = Conv<pads=[1,1,1,1]>(x, w) b = BatchNormalization(a, gn, bn, mn, vn) y = Relu(b) }"""
WEIGHTS = {"w": (8, 3, 3, 3), **norm("n", 8)}


def refused(path: Path, match: str) -> None:
    out = path.with_name("out.onnx")
    with pytest.raises(InputError, match=match):
        fold_onnx(path, out)
    assert not out.exists()


def test_no_file_and_no_onnx(tmp_path: Path) -> None:
    refused(tmp_path / "none.onnx", "there is no file")
    (tmp_path / "text.onnx").write_text("not a network")
    refused(tmp_path / "text.onnx", "damaged|cannot be read as ONNX")
    (tmp_path / "empty.onnx").write_bytes(b"")
    refused(tmp_path / "empty.onnx", "holds no network")


def edited(made: Any, change: Any) -> Any:
    change(made)
    return made


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m.ClearField("opset_import"), "imports no opset"),
        (lambda m: setattr(m.opset_import[0], "version", 999), "opset 999"),
        (lambda m: setattr(m.opset_import[0], "version", 6), "opset 6"),
        (lambda m: m.graph.node[1].output.__setitem__(0, "a"), "'a' is computed twice"),
        (
            lambda m: m.graph.node[2].input.__setitem__(0, "c"),
            "reads 'c' before any node computes it",
        ),
        (lambda m: setattr(m.graph.output[0], "name", "z"), "no node computes its output 'z'"),
        (lambda m: m.graph.initializer[0].dims.__setitem__(0, 10**9), "need .* but there are"),
        (lambda m: m.graph.initializer[0].dims.__setitem__(0, -8), "negative size"),
        (lambda m: m.graph.node[0].attribute[0].ints.append(7), "ONNX Runtime cannot open it"),
    ],
)
def test_a_file_that_does_not_hold_together(tmp_path: Path, change: Any, match: str) -> None:
    refused(written(tmp_path, edited(model(TEXT, WEIGHTS), change)), match)


def test_a_constant_that_would_fill_the_memory_is_not_computed(tmp_path: Path) -> None:
    text = """(float[n, 3] x) => (float[n, 3] y, float[k] z) {
      s = Constant<value_ints=[1000000, 1000000, 1000]>() a = Identity(x) y = Relu(a)
      c = ConstantOfShape(s) z = ReduceSum<keepdims=0>(c) }"""
    assert fold_onnx(written(tmp_path, model(text, {}))).nodes_after["ConstantOfShape"] == 1


def test_cuts_and_flips_never_crash_and_leave_nothing_wrong(tmp_path: Path) -> None:
    attack(tmp_path, range(12))


@pytest.mark.zoo
def test_many_cuts_and_flips(tmp_path: Path) -> None:
    attack(tmp_path, range(300))


def attack(folder: Path, seeds: range) -> None:
    whole = written(folder, model(TEXT, WEIGHTS)).read_bytes()
    for seed in seeds:
        random, bytes_of = Random(seed), bytearray(whole)
        if seed % 3 == 0:
            bytes_of = bytes_of[: random.randrange(len(bytes_of))]
        else:
            for _ in range(random.choice([1, 1, 3])):
                bytes_of[random.randrange(len(bytes_of))] ^= 1 << random.randrange(8)
        case = folder / f"case{seed}.onnx"
        case.write_bytes(bytes_of)
        out = case.with_name("out.onnx")
        said = outcome(case, out)
        assert "defect of refold" not in said, f"{seed}: {said}"
        assert not said or not out.exists(), seed
        out.unlink(missing_ok=True)


def outcome(case: Path, out: Path) -> str:
    try:
        fold_onnx(case, out)
    except RefoldError as error:
        return str(error)
    return ""


# weights outside the file


def outside(folder: Path) -> Path:
    text = TEXT.replace("float[n, 8", "float[n, 40")
    made = model(text, {"w": (40, 3, 3, 3), **norm("n", 40)})
    convert_model_to_external_data(made, location="weights.bin", size_threshold=0)
    return written(folder, made)


def test_weights_outside_stay_outside(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    source, out = outside(tmp_path / "in"), tmp_path / "out" / "net.onnx"
    report = fold_onnx(source, out)
    assert report.nodes_after == {"Conv": 1, "Relu": 1}
    assert sorted(p.name for p in out.parent.iterdir()) == ["net.onnx", "net.onnx.data"]
    shutil.move(out.parent, tmp_path / "moved")  # the two files need nothing else
    assert_same(source, tmp_path / "moved" / "net.onnx", x=(2, 3, 6, 6))


def test_a_file_with_weights_outside_is_copied_where_nothing_folds(tmp_path: Path) -> None:
    made = model(
        "(float[n, 3, h, w] x) => (float[n, 8, h, w] y) { y = Conv(x, w) }", {"w": (8, 3, 1, 1)}
    )
    convert_model_to_external_data(made, location="w.bin", size_threshold=0)
    source, out = written(tmp_path, made), tmp_path / "out.onnx"
    assert not fold_onnx(source, out).changed
    (tmp_path / "w.bin").rename(tmp_path / "gone")
    assert kinds(out) == ["Conv"]
    assert numpy_helper.to_array(onnx.load(out).graph.initializer[0]).shape == (8, 3, 1, 1)


@pytest.mark.parametrize("location", ["../weights.bin", "/tmp/weights.bin", ""])
def test_weights_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    source = outside(tmp_path)
    made = onnx.load(source, load_external_data=False)
    for tensor in made.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    source.write_bytes(made.SerializeToString())
    refused(source, "outside the folder")


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    source = outside(tmp_path / "in")
    (tmp_path / "in" / "weights.bin").rename(tmp_path / "weights.bin")
    (tmp_path / "in" / "weights.bin").symlink_to(tmp_path / "weights.bin")
    refused(source, "outside the folder")


def test_weights_that_are_cut_off_or_gone_are_refused(tmp_path: Path) -> None:
    source = outside(tmp_path)
    data = tmp_path / "weights.bin"
    data.write_bytes(data.read_bytes()[:-9])
    refused(source, "cut off|need .* but there are")
    data.unlink()
    refused(source, "cannot be read")


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = written(tmp_path, model(TEXT, WEIGHTS)), tmp_path / "out.onnx"
    out.write_text("old")

    def fail(*args: object, **given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("refold.onnx_files.folding.save", fail)
    with contextlib.suppress(InputError):
        fold_onnx(source, out)
    assert out.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "out.onnx"]


def test_not_a_number_in_the_weights_is_kept_with_the_reason(tmp_path: Path) -> None:
    made = model(TEXT, WEIGHTS)
    array = numpy_helper.to_array(made.graph.initializer[0]).copy()
    array[0, 0, 0, 0] = np.nan
    made.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "w"))
    report = fold_onnx(written(tmp_path, made), tmp_path / "out.onnx")
    assert not report.changed
    assert "not finite" in report.kept[0].reason
