"""MODEL `hf:FOLDER`: a folder that `save_pretrained` wrote, with its weights, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from refold.exporting import onnx_session, run_onnx
from zoo.live import enliven

pytestmark = pytest.mark.slow

transformers = pytest.importorskip("transformers")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", num_labels=5
    )
    model = transformers.ResNetForImageClassification(config).eval()
    enliven(model, (torch.randn(2, 3, 64, 64),))
    model.save_pretrained(tmp_path / "resnet")
    return tmp_path / "resnet"


def test_a_folder_is_converted_with_its_weights(
    run: Callable, folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "net.onnx"
    result = run("convert", f"hf:{folder}", "--input-size", "3x64x64", "-o", file)
    assert result.code == 0, result.err
    model = transformers.ResNetForImageClassification.from_pretrained(folder).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = model(x).logits
    (got,) = run_onnx(onnx_session(file), (x,))
    assert torch.allclose(got, wanted, atol=1e-4)


def test_the_plan_of_a_folder(run: Callable, folder: Path) -> None:
    result = run("inspect", f"hf:{folder}", "--input-size", "3x32x32", "--json")
    assert result.code == 0, result.err
    model = transformers.ResNetForImageClassification.from_pretrained(folder)
    count = sum(isinstance(part, torch.nn.BatchNorm2d) for part in model.modules())
    assert len(json.loads(result.out)["steps"]) == count


def test_what_is_no_such_folder_is_one_line(run: Callable, folder: Path, tmp_path: Path) -> None:
    result = run("inspect", f"hf:{tmp_path / 'nothing'}")
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert "holds no config.json: give a folder that save_pretrained wrote" in result.err
    (folder / "config.json").write_text("{")
    result = run("inspect", f"hf:{folder}")
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert "cannot be loaded" in result.err
