"""`refold train`, as a user types it."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from refold.cli.progress import LineReporter, RichReporter
from refold.training import Progress, RunPlan, Stopped
from training.pictures import folders, picture

pytestmark = pytest.mark.slow

FEW = (
    "--epochs", "1", "--batch-size", "4", "--image-size", "16", "--workers", "0", "--cpu",
    "--tracker", "none", "--set", "deploy.files=[safetensors]",
)  # fmt: skip
SRC = Path(__file__).parents[2] / "src"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return folders(tmp_path / "data", train=5, val=2, side=16)


NET = """
from torch import nn

def build(num_classes):
    return nn.Sequential(nn.Conv2d(3, num_classes, 3, bias=False), nn.BatchNorm2d(num_classes),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


@pytest.fixture
def small(tmp_path: Path) -> str:
    """Return the MODEL of a tiny network in a file."""
    (tmp_path / "net.py").write_text(NET)
    return f"{tmp_path / 'net.py'}:build"


def test_a_folder_a_model_a_block(run: Callable, data: Path, tmp_path: Path, small: str) -> None:
    words = ("--data", data, "--model", small, "--block", "dbb", "-o", tmp_path / "run")
    result = run("train", *words, *FEW)
    assert result.code == 0, result.err
    assert "same answers: 4 of 4" in result.out
    assert "epoch 1/1: loss" in result.err  # plain lines where there is no terminal
    assert "best" in result.err
    again = run("train", *words, *FEW)
    assert again.code == 2
    assert "--resume" in again.err
    # To go on, the network is built anew from the name in config.yaml.
    done = run("train", "-o", tmp_path / "run", "--resume", "--json")
    assert json.loads(done.out)["answers"] == 4
    other = run("train", *words, *FEW[2:], "--epochs", "30", "--resume")
    assert other.code == 2
    assert "--epochs 30, but the run was started with 1: " in other.err


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_run_that_was_stopped_ends_as_a_shell_has_it(
    run: Callable, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def stopped(*args: object, **options: object) -> None:
        raise Stopped(number)

    monkeypatch.setattr(importlib.import_module("refold.training"), "train", stopped)
    result = run("train", "-o", "RUN")
    assert result.code == 128 + number
    assert result.err == "stopped and saved; continue with: refold train -o RUN --resume\n"


def test_a_dry_run_of_a_network_of_a_zoo(run: Callable, data: Path, tmp_path: Path) -> None:
    words = ("--data", data, "--model", "timm:test_resnet", "-o", tmp_path / "run", "--dry-run")
    result = run("train", *words, *FEW)
    assert result.code == 0, result.err
    assert "dry run: nothing was written" in result.err
    assert re.search(r"\b2 steps, [\d.]+ s for the first: about 0:01 in all", result.out)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--recipe", "digitz"), "no recipe 'digitz': did you mean digits"),
        (("--set", "optimizer.rate=1"), "digits.yaml: unknown key 'optimizer.rate'"),
        (("--data", "nowhere"), "nowhere': give 'digits', a folder"),
        (("--model", "timm:resnet81"), "did you mean"),
        (("--model", "net.pt2"), "cannot be trained"),
        (("--model", "torchvision:resnet18"), "images of 3 channels, not 1"),
        (("--resume", "--epochs", "3"), "holds no run (config.yaml is missing)"),
        (("--data-changed",), "--data-changed is for a resumed run: pass --resume as well"),
        (("--lr-factor", "layer1"), "--lr-factor 'layer1' is not PATTERN=FACTOR"),
        (("--lr-factor", "0*=0"), "0.0 is not a factor; freeze what must stay"),
        (("--task", "paint"), "task: Input should be 'classify'"),
    ],
)
def test_mistakes_are_one_line(
    run: Callable, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    result = run("train", "-o", tmp_path / "run", *words)
    assert result.code == 2
    assert message in result.err
    assert result.err.strip().count("\n") == 0
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("net.py:build", "takes no such argument: leave options.width out, or add it there"),
        ("run", "is a trained network, which is what it is: leave options.width out"),
    ],
)
def test_an_option_that_the_model_does_not_have_is_an_error(
    run: Callable, data: Path, tmp_path: Path, small: str, model: str, said: str
) -> None:
    if model == "run":
        words = ("--data", data, "--model", small, "--block", "none", "-o", tmp_path / "run")
        assert run("train", *words, *FEW).code == 0
    words = ("--data", data, "--model", tmp_path / model, "--set", "options.width=3")
    result = run("train", *words, *FEW, "--block", "none", "-o", tmp_path / "next")
    assert result.code == 2
    assert said in result.err
    assert not (tmp_path / "next").exists()


def test_what_is_wrong_with_the_images_is_named(run: Callable, data: Path, tmp_path: Path) -> None:
    (data / "val" / "cow").mkdir()
    picture(0, 0).save(data / "val" / "cow" / "0.png")
    result = run("train", "--data", data, "-o", tmp_path / "run", *FEW)
    assert result.code == 2
    assert f"{data / 'val' / 'cow'}: " in result.err


def test_the_recipes_are_listed(run: Callable) -> None:
    listed = run("train", "--recipes").out
    assert "repvgg_imagenet: repvgg_a0, 120 epochs" in listed
    assert "aims at" in listed


def test_a_signal_to_the_whole_group_saves(data: Path, tmp_path: Path, small: str) -> None:
    """Ctrl-C in a terminal reaches the loader's workers, too; they leave it to the main process."""
    folder = tmp_path / "run"
    words = ["train", "--data", data, "--model", small, "-o", folder, *FEW]
    words[words.index("--epochs") + 1] = "5000"
    words[words.index("--workers") + 1] = "1"
    process = subprocess.Popen(
        [sys.executable, "-m", "refold", *map(str, words)], stderr=subprocess.PIPE, text=True,
        stdout=subprocess.DEVNULL, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not (folder / "checkpoints" / "last").exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert f"refold train -o {folder} --resume" in said
    assert "Traceback" not in said
    assert (folder / "checkpoints" / "last").exists()


@pytest.mark.parametrize("kind", [LineReporter, RichReporter])
def test_progress_says_where_the_run_is(
    kind: type, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refold.cli.progress.QUIET_SECONDS", 0.0)
    reporter = kind()
    for _ in range(2):  # a study has many runs
        reporter.begin(RunPlan("net", 5, "here", 8, 4, 2, (3, 8, 8), 3, 2, 4, 1, "cpu", 7))
        reporter.step(Progress(2, 3, 1, 2, 0.5, 0.25, 0.1, 40.0, 75.0))
        record = {"epoch": 2, "train_loss": 0.5, "train_accuracy": 0.25, "val_top1": 0.75,
                  "best": 0.8, "images_per_second": 40.0}  # fmt: skip
        reporter.epoch(record)
        reporter.note("[by the way]")
        reporter.end()
    said = capsys.readouterr().err
    assert said.count("continues after step 7") == said.count("[by the way]") == 2
    assert said.count("epoch 2/3: loss 0.5000, accuracy 25.00%; validation: top-1 75.00%") == 2
    if kind is LineReporter:
        assert "epoch 2/3, step 1/2: loss 0.5000, accuracy 25.00%, 40 images/s, 1:15 left" in said
