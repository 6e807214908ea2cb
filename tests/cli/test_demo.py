"""The parts of the demo; the whole of it is `make demo`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from refold.cli.demo_nets import NETS, subject_of
from refold.cli.demo_photos import PHOTOGRAPHS, labels, photographs, top5
from refold.cli.demo_story import tell_story


def test_published_weights_know_the_photographs() -> None:
    net = next(net for net in NETS if net.is_trained)
    subject = subject_of(net, seed=0)
    with torch.no_grad():
        logits = subject.model(photographs(net.side))
    cat, coffee, rocket = (labels(classes) for classes in top5(logits))
    assert "tabby" in cat
    assert coffee[0] == "espresso"
    assert "missile" in rocket


def test_photographs_fill_the_range() -> None:
    images = photographs(64)
    assert images.shape == (len(PHOTOGRAPHS), 3, 64, 64)
    assert float(images.min()) >= -1
    assert float(images.max()) <= 1
    assert float(images.std()) > 0.2


def test_a_folder_that_cannot_be_made_is_explained(run: Callable, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = run("demo", "--output", tmp_path / "file" / "demo-out")
    assert result.code == 2
    assert "--output" in result.err


@pytest.mark.slow
def test_the_whole_demo(run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = partial(tell_story, epochs=1, rounds=1)
    (tmp_path / "digits").mkdir()  # what an earlier demo left is no obstacle
    (tmp_path / "digits" / "config.yaml").write_text("data: digits")
    monkeypatch.setattr(importlib.import_module("refold.cli.demo"), "tell_story", short)
    result = run("demo", "--output", tmp_path)
    assert result.code == 0, result.err
    files = {f"{net.name}.onnx" for net in NETS}
    assert {path.name for path in tmp_path.iterdir()} == {*files, "digits"}
    assert "same answer to each of the 1000 test images" in result.out
    norms = next(line for line in result.out.splitlines() if line.strip().startswith("norms"))
    assert [norms.split()[position] for position in (3, 6, 9)] == ["0", "0", "0"]
    assert "espresso" in result.out
