"""What a file says of itself is read back, and what it computes stays as it was."""

from __future__ import annotations

import errno
import json
import zipfile
from pathlib import Path

import pytest
import safetensors
import torch
from torch import nn

import refold
from refold.errors import ExportError, InputError
from refold.exporting import (
    Options,
    describe,
    described,
    metadata,
    onnx_session,
    openvino_model,
    read_provenance,
    run_onnx,
    write,
)
from refold.exporting import run_openvino as run_xml
from refold.exporting.formats.appendix import append, appended
from refold.exporting.provenance import parse_about

ABOUT = {"classes": ["ant", "bée", 'quo"te'], "preprocessing": {"mean": [0.485], "crop": None}}


@pytest.mark.parametrize("suffix", ["onnx", "safetensors", "pt2", "xml"])
def test_a_file_tells_what_was_written_into_it(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    x = torch.randn(2, 3, 8, 8)
    file = refold.export(net, tmp_path / f"net.{suffix}", x)
    assert described(file) == {}
    describe(file, {"old": 1})
    describe(file, ABOUT)
    assert described(file) == ABOUT
    wanted = net(x).detach()
    if suffix == "onnx":
        found = run_onnx(onnx_session(file), ((x,), {}))[0]
    elif suffix == "xml":
        found = run_xml(openvino_model(file), ((x,), {}))[0]
    elif suffix == "pt2":
        found = torch.export.load(file).module()(x)
    else:
        refold.load_checkpoint(net, file)
        with safetensors.safe_open(file, framework="pt") as opened:
            assert opened.metadata()["format"] == "pt"
            assert opened.metadata()["classes"] == '["ant", "b\\u00e9e", "quo\\"te"]'
        found = net(x)
    assert torch.allclose(found, wanted, atol=1e-6)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == sorted(
        [".bin", ".xml"] if suffix == "xml" else [f".{suffix}"]
    )


@pytest.mark.parametrize("suffix", ["safetensors", "pt2"])
def test_a_file_that_cannot_tell_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """The disk is full between the two: no file is left that lacks its classes."""

    def fail(file: Path, entries: object) -> None:
        del entries
        assert file.is_file()
        raise OSError(errno.ENOSPC, "No space left on device")

    net, x, file = nn.Conv2d(3, 4, 1).eval(), torch.zeros(1, 3, 2, 2), tmp_path / f"net.{suffix}"
    with monkeypatch.context() as patch:
        patch.setitem(metadata._FORMATS, file.suffix, fail)
        with pytest.raises(ExportError, match=rf"to net.{suffix}: .*[Nn]o space left"):
            write(net, file, x, Options(), about=ABOUT)
    assert not list(tmp_path.iterdir())
    write(net, file, x, Options(), about=ABOUT)
    assert described(file) == ABOUT


@pytest.mark.parametrize("suffix", ["pte", "tflite"])
def test_what_a_program_for_phones_says_stands_behind_it(tmp_path: Path, suffix: str) -> None:
    """Readers of both formats go by offsets from the start, so the program must stay as it was."""
    file = tmp_path / f"net.{suffix}"
    program = bytes(range(256)) * 8
    file.write_bytes(program)
    assert appended(file) == {}
    append(file, {"refold": "1"})
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("labels.txt", "of another tool")
    describe(file, {"classes": "old"})
    describe(file, ABOUT)
    content = file.read_bytes()
    assert content.startswith(program)
    assert content.count(b"PK\x03\x04") == 5  # each entry once, and no archive before it
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        assert archive.read("labels.txt") == b"of another tool"
        assert json.loads(archive.read("refold/classes")) == ABOUT["classes"]
    assert parse_about(appended(file), file) == ABOUT
    assert appended(file)["refold"] == "1"
    if suffix == "tflite":
        assert described(file) == ABOUT
        assert read_provenance(file) == {"version": "1"}


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"none")
    with pytest.raises(InputError, match="cannot be read"):
        described(tmp_path / "net.onnx")
    with pytest.raises(InputError, match=r"is not one of \.onnx"):
        describe(tmp_path / "net.engine", {})
