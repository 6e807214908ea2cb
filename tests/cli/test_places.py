"""Files that commands read and write: names in capitals, and one message where there is no way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from helpers.layout_nets import NETS, live
from helpers.nightly import rare
from refold.sources.networks import build

pytestmark = pytest.mark.slow

SMALL = ("--input-size", "3x9x9")


@pytest.mark.parametrize("suffix", [".SAFETENSORS", ".XML", *rare(".Pt2")])
def test_a_suffix_in_capitals(run: Callable, net: Callable, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"net{suffix}"
    done = run("convert", net("branchy"), *SMALL, "-o", out)
    assert done.code == 0, done.err
    beside = {"net.bin"} if suffix == ".XML" else set()
    assert {file.name for file in tmp_path.iterdir()} == {out.name} | beside
    assert out.stat().st_mode & 0o777 == _usual_mode(tmp_path)
    verified = run("verify", net("branchy"), out, *SMALL)
    assert verified.code == 0, verified.err
    if suffix == ".Pt2":
        assert run("inspect", out).code == 0


def _usual_mode(folder: Path) -> int:
    (folder / "probe").touch()
    return (folder / "probe").stat().st_mode & 0o777


@pytest.mark.parametrize("suffix", [".PTH", ".SAFETENSORS"])
def test_weights_in_capitals(run: Callable, net: Callable, tmp_path: Path, suffix: str) -> None:
    wide, weights = tmp_path / f"wide{suffix}", tmp_path / f"TRAIN{suffix}"
    done = run("expand", net("branchy"), *SMALL, "--block", "acb", "-o", wide)
    assert done.code == 0, done.err
    assert wide.read_bytes().startswith(b"PK") == (suffix == ".PTH")
    torch.save(live(NETS["RepVGG"]).state_dict(), weights)
    deployed = run("convert", weights, "-o", tmp_path / f"b{suffix}")
    assert (deployed.code == 0) == (suffix == ".SAFETENSORS"), deployed.err


@pytest.fixture
def narrow(tmp_path: Path, net: Callable) -> Path:
    """Safetensors, not so named: the weights of a network, its kernels in float8."""
    state = build(net("branchy")).model.state_dict()
    state = {k: t.to(torch.float8_e5m2) if t.ndim == 4 else t for k, t in state.items()}
    safetensors.torch.save_file(state, tmp_path / "net.pth")
    return tmp_path / "net.pth"


def test_float8_is_said(run: Callable, net: Callable, tmp_path: Path, narrow: Path) -> None:
    out = tmp_path / "a.safetensors"
    done = run("convert", net("branchy"), *SMALL, "--checkpoint", narrow, "-o", out)
    assert done.code == 0, done.err
    assert "of float8_e5m2 to float32" in done.err
    state = {
        key: t.to(torch.float8_e4m3fn) if t.ndim == 4 else t
        for key, t in live(NETS["RepVGG"]).state_dict().items()
    }
    torch.save(state, tmp_path / "train.pth")
    count = sum(t.ndim == 4 for t in state.values())
    done = run("convert", tmp_path / "train.pth", "-o", out)
    assert f"widened {count} of float8_e4m3fn to float32" in done.err
    record = json.loads(run("convert", tmp_path / "train.pth", "-o", out, "--json").out)
    assert record["notes"] == [f"widened {count} of float8_e4m3fn to float32"]


@pytest.mark.parametrize(
    ("option", "place", "reason"),
    [
        ("-o", "n" * 300 + ".safetensors", "file name too long"),
        ("-o", "d/" * 3000 + "a.onnx", "file name too long"),
        ("-o", "loop.onnx", "too many levels of symbolic links"),
        ("--checkpoint", "n" * 300, "file name too long"),
        ("--checkpoint", "empty.pth", "is empty"),
    ],
)
def test_one_message_before_the_work(
    run: Callable, net: Callable, tmp_path: Path, option: str, place: str, reason: str
) -> None:
    (tmp_path / "loop.onnx").symlink_to("loop.onnx")
    (tmp_path / "empty.pth").touch()
    before = sorted(tmp_path.iterdir())
    rest = [] if option == "-o" else ["-o", tmp_path / "a.onnx"]
    result = run("convert", net("branchy"), *SMALL, option, tmp_path / place, *rest)
    assert result.code == 2
    assert reason in result.err
    assert len(result.err.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("end", [".pt2", ".py:build", ".onnx"])
def test_a_name_too_long_is_no_file(run: Callable, net: Callable, tmp_path: Path, end: str) -> None:
    name = tmp_path / ("n" * 300 + end)
    words = ("verify", net("branchy"), name, *SMALL) if end == ".onnx" else ("inspect", name)
    result = run(*words)
    assert (result.code, "there is no file" in result.err) == (2, True), result.err


def test_state_that_is_no_tensor(run: Callable, tmp_path: Path) -> None:
    factory = tmp_path / "extra.py"
    factory.write_text(
        "from torch import nn\n"
        "class Extra(nn.Conv2d):\n"
        "    def get_extra_state(self): return {'a': 1}\n"
        "def build(): return nn.Sequential(Extra(3, 4, 3), nn.Conv2d(4, 4, 3))\n"
    )
    out = tmp_path / "a.safetensors"
    result = run("convert", f"{factory}:build", *SMALL, "-o", out)
    assert result.code == 2, result.err
    assert "_extra_state cannot be written" in result.err
    assert not out.exists()


def test_weights_that_are_nan_read_back(tmp_path: Path) -> None:
    import refold

    model = nn.Conv2d(3, 4, 3).eval()
    nn.init.constant_(model.weight, torch.nan)
    path = refold.export(model, tmp_path / "a.safetensors", torch.ones(1, 3, 5, 5))
    assert torch.isnan(safetensors.torch.load_file(path)["weight"]).all()
