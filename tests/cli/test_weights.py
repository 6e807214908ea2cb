"""`refold convert` on weights alone: what it writes is what the deployed network loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from helpers.layout_nets import NETS, answer, deployed, error, live


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    state = {f"module.{k}": v for k, v in live(NETS["RepVGGplus"]).state_dict().items()}
    torch.save({"model": state, "epoch": 3}, tmp_path / "train.pth")
    return tmp_path / "train.pth"


def test_weights_become_deploy_form(run: Callable, tmp_path: Path, weights: Path) -> None:
    out = tmp_path / "deploy.safetensors"
    done = run("convert", weights, "-o", out)
    assert done.code == 0, done.err
    assert "train.pth (RepVGGplus)" in done.out
    assert "folds: 4" in done.out
    assert "heads that only training uses" in done.err
    assert "eps 1e-05" in done.err
    model = deployed("RepVGGplus")
    model.load_state_dict(safetensors.torch.load_file(out))
    assert error(answer(live(NETS["RepVGGplus"])), answer(model)) <= 1e-9
    again = run("convert", out, "-o", tmp_path / "again.safetensors")
    assert "it is in deploy form" in again.out


def test_another_eps(run: Callable, tmp_path: Path) -> None:
    saved, model = live(NETS["RepVGG"]), deployed("RepVGG")
    for part in saved.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps = 1e-3
    torch.save(saved.state_dict(), tmp_path / "a.pth")
    out = tmp_path / "b.safetensors"
    done = run("convert", tmp_path / "a.pth", "-o", out, "--norm-eps", "1e-3")
    assert done.code == 0, done.err
    model.load_state_dict(safetensors.torch.load_file(out))
    assert error(answer(saved), answer(model)) <= 1e-9
    refused = run("convert", "timm:resnet18", "-o", out, "--norm-eps", "1e-3")
    assert (refused.code, "weights alone" in refused.err) == (2, True)


def test_the_record(run: Callable, tmp_path: Path, weights: Path) -> None:
    out = tmp_path / "deploy.safetensors"
    record = json.loads(run("convert", weights, "-o", out, "--json").out)
    assert (record["layout"], record["folded"]) == ("RepVGGplus", 4)
    assert record["tensors"] == {
        "before": len(live(NETS["RepVGGplus"]).state_dict()),
        "after": len(safetensors.torch.load_file(out)),
    }
    assert all(key.startswith("stage1_aux.") for key in record["left_out"])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["-o", "a.onnx"], "is read as weights alone"),
        (["-o", "a.safetensors", "--input-size", "3x9x9"], "belong to a network"),
        (["-o", "a.safetensors", "--checkpoint", "b.pth"], "belong to a network"),
    ],
)
def test_what_only_a_network_can_do(
    run: Callable, tmp_path: Path, weights: Path, words: list[str], reason: str
) -> None:
    words = [str(tmp_path / word) if word.startswith("a.") else word for word in words]
    result = run("convert", weights, *words)
    assert (result.code, reason in result.err) == (2, True), result.err
    assert [file.name for file in tmp_path.iterdir()] == ["train.pth"]


def test_a_missing_file_is_named(run: Callable, tmp_path: Path) -> None:
    result = run("convert", tmp_path / "none.pth", "-o", tmp_path / "a.safetensors")
    assert result.code == 2
    assert f"there is no file '{tmp_path / 'none.pth'}'" in result.err
