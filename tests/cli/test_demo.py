"""The parts of the demo; the whole of it is `make demo`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from refold.cli.demo_nets import NETS, DemoNet, subject_of
from refold.cli.demo_photos import PHOTOGRAPHS, labels, photographs, top5
from refold.cli.demo_story import tell_story
from refold.cli.subject import Subject

pytestmark = pytest.mark.slow

SHORTENED = ("cli.demo", "cli.demo_story", "training.data.digits")


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


def untrained(net: DemoNet, seed: int) -> Subject:
    return subject_of(replace(net, is_trained=False), seed)


@pytest.mark.slow
def test_the_whole_demo(run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step of it, with fewer digits, one small network and one round of timing."""
    demo, story, digits = (importlib.import_module(f"refold.{name}") for name in SHORTENED)
    short = partial(tell_story, epochs=1, rounds=1)
    monkeypatch.setattr(demo, "tell_story", short)
    monkeypatch.setattr(demo, "ROUNDS", 1)
    for part in (demo, story):  # each other runtime exports both forms once more
        monkeypatch.setattr(part, "RUNTIME_TITLES", {"eager": "PyTorch"})
    nets = [DemoNet("test_efficientnet", 64, is_trained=True)]  # so that its answers are shown
    monkeypatch.setattr(demo, "NETS", nets)
    monkeypatch.setattr(demo, "subject_of", untrained)
    monkeypatch.setattr(digits, "EACH", 60)
    monkeypatch.setattr(digits, "TEST_EACH", 20)
    (tmp_path / "digits").mkdir()  # what an earlier demo left is no obstacle
    (tmp_path / "digits" / "config.yaml").write_text("data: digits")
    result = run("demo", "--output", tmp_path)
    assert result.code == 0, result.err
    files = {f"{net.name}.onnx" for net in nets}
    assert {path.name for path in tmp_path.iterdir()} == {*files, "digits"}
    assert "same answer to each of the 200 test images" in result.out
    norms = next(line for line in result.out.splitlines() if line.strip().startswith("norms"))
    assert norms.split()[3] == "0"
    assert "test_efficientnet: top-5 labels" in result.out
