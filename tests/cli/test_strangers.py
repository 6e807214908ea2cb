"""Command lines as strangers write them: one sentence before any work, and nothing left behind."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import refold
from refold.errors import InputError
from training.pictures import folders

SMALL = ["--input-size", "3x9x9"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["convert", "", "-o", "o.onnx"], "an argument is empty: is it a variable of the shell"),
        (["train", "--data", ""], "the value of --data is empty"),
        (["train", "-o", ""], "the value of -o is empty"),
        (["convert", "NET", "--output="], "the value of --output is empty"),
        (["convert", "NET", *SMALL, "--output=~/o.onnx"], "begins with ~, which only a shell"),
        (["train", "--output=~/run"], "begins with ~, which only a shell"),
        (["convert", "NET", "-o", "o.onnx", "--weights-key", "a"], "weights of a --checkpoint"),
        (["convert", "NET", "-o", "o.onnx", "--seed", str(2**70)], "less than or equal to"),
        (["convert", "NET", "-o", "o.onnx", "--dynamic", "bach"], "dynamic='bach' is not a choice"),
        (["convert", "no.pth", "-o", "o.safetensors"], "there is no file 'no.pth'"),
        (["inspect", "no.xml"], "there is no file 'no.xml'"),
        (
            ["convert", "NET", *SMALL, "-o", "o.onnx", "--opset", "5"],
            "opset 5 is not one that onnx",
        ),
        (["convert", "NET", *SMALL, "-o", "o.pt2", "--tuning", "no.json"], "there is no file 'no"),
        (
            ["convert", "NET", "--input-size", "3x99999x99999", "-o", "o.pt2"],
            "out of memory (120.0 GB at once)",
        ),
        (["bench", "no.pt"], "there is no file 'no.pt'"),
        (["bench", "NET", *SMALL, "--device", "meta"], "--device meta holds no numbers"),
        (["bench", "NET", "--runtime", "tensorrt"], "'tensorrt' is not eager, onnxruntime,"),
        (["prune", "NET", "--ratio", "0.5", "--runtime", "x", "--measure"], "'x' is not eager"),
        (["tune", "NET", "--runtime", "x"], "'x' is not eager"),
        (["study", "branches", "--set", "lerning=1", "-o", "st"], "unknown key 'lerning'"),
        (["study", "branches", "--data", "nowhere", "-o", "st"], "there is no folder"),
        (["train", "--lr", "inf"], "optimizer.lr: Input should be a finite number"),
        (["train", "--set", "augment.std=[0]"], "augment.std.0: Input should be greater than 0"),
        (["train", "--set", "augment.scale=[2, 1]"], "give two shares of the area"),
    ],
)
def test_one_sentence_and_no_file(
    run: Callable, net: Callable, folder: Path, words: list[str], said: str
) -> None:
    done = run(*(net("branchy") if word == "NET" else word for word in words))
    assert done.code == 2, done.out
    assert said in done.err.splitlines()[-1]
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--input-names", "a,b"], "input_names must be one name, for input; got 'a', 'b'"),
        (["--output-names", "a,b"], "output_names must be one name, for output0; got 'a', 'b'"),
        (["--input-names", "a", "--output-names", "a"], "'a'"),
        (["--dynamic", "x:0=n"], "dynamic names 'x', which is no input: the inputs are input"),
        (["--dynamic", "input:9=n"], "dynamic names axis 9 of input, which has 4 axes"),
    ],
)
def test_what_a_file_cannot_be_is_said_before_the_network_is_folded(
    run: Callable, net: Callable, folder: Path, words: list[str], said: str
) -> None:
    done = run("convert", net("branchy"), *SMALL, "-o", "o.onnx", *words)
    assert done.code == 2
    assert said in done.err
    assert "\nfold: " not in done.err
    assert not list(folder.iterdir())


@pytest.mark.parametrize("content", [b"", b"junk" * 100])
def test_junk_is_no_program_and_no_log(run: Callable, folder: Path, content: bytes) -> None:
    (folder / "a.pt2").write_bytes(content)
    done = run("convert", "a.pt2", "-o", "b.onnx")
    assert done.code == 2
    [line] = done.err.splitlines()
    assert "a.pt2 is not an exported program" in line


def test_a_name_that_begins_with_a_tilde_is_one_where_it_exists(
    run: Callable, net: Callable, folder: Path
) -> None:
    (folder / "~").mkdir()
    assert run("expand", net("branchy"), *SMALL, "--output=~/wide.pth").code == 0
    assert (folder / "~" / "wide.pth").is_file()


def test_a_variance_below_zero_is_no_variance(run: Callable, net: Callable, folder: Path) -> None:
    from refold.sources.networks import build

    state = build(net("branchy")).model.state_dict()
    state["1.running_var"] -= 5
    torch.save(state, folder / "net.pth")
    done = run("inspect", net("branchy"), *SMALL, "--checkpoint", "net.pth")
    assert done.code == 2
    assert "'1.running_var' holds a negative variance" in done.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--batch-size", "1"], "does not train on a batch of 1 x 3 x 9 x 9: Expected more than 1"),
        (["--set", "augment.mean=[1, 2]"], "augment.mean has 2 numbers, and the images 3 channels"),
        (["--checkpoint", "no.pth", "--dry-run"], "no.pth does not exist"),
    ],
)
def test_what_cannot_be_trained_is_said(
    run: Callable, folder: Path, words: list[str], said: str
) -> None:
    folders(folder / "data")
    (folder / "net.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 9), nn.BatchNorm2d(4), nn.Flatten(),"
        " nn.Linear(4, 2))\n"
    )
    always = ["--data", "data", "--model", "net.py:build", "--block", "none", "--image-size", "9"]
    quick = ["--workers", "0", "--cpu", "--tracker", "none", "--epochs", "1", "-o", "run"]
    done = run("train", *always, *quick, *words)
    assert done.code == 2, done.err
    assert said in done.err


@pytest.mark.slow
def test_a_dry_run_reads_its_weights_beside_another_run(run: Callable, folder: Path) -> None:
    """The checkpoints in the folder are another run's: nothing is resumed."""
    (folder / "run" / "checkpoints").mkdir(parents=True)
    (folder / "run" / "checkpoints" / "step-000000001.safetensors").write_bytes(b"x")
    done = run("train", "-o", "run", "--dry-run", "--checkpoint", "no.pth", "--cpu")
    assert done.code == 2
    assert "no.pth does not exist" in done.err


@pytest.mark.slow
def test_published_weights_are_asked_for_with_their_own_classes(
    run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def create_model(name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
        asked.append({"pretrained": pretrained, **options})
        if pretrained:
            raise OSError("no hub here")
        return nn.Linear(2, 2)

    monkeypatch.setattr("timm.create_model", create_model)
    words = ["--model", "timm:resnet10t", "--pretrained", "--dry-run", "--block", "none", "--cpu"]
    done = run("train", *words)
    assert done.code == 2
    assert "the published weights of timm:resnet10t cannot be loaded (OSError: no hub" in done.err
    assert "InputError" not in done.err
    assert asked[-1] == {"pretrained": True, "in_chans": 1}


NET = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
X = torch.zeros(1, 3, 8, 8)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: refold.export(None, "a.onnx", X), "expected a torch.nn.Module, got NoneType"),
        (lambda: refold.export(nn.Conv2d, "a.pt2", X), "nn.Module, got the class Conv2d"),
        (lambda: refold.export(NET.state_dict(), "a.pt2", X), "nn.Module, got OrderedDict"),
        (lambda: refold.export(NET, None, X), "path must be a path, got NoneType"),
        (lambda: refold.export(NET, "~/a.pt2", X), "begins with ~"),
        (lambda: refold.export(NET, "a.onnx", X, dynamic={0: 3}), "needs its axes, such as"),
        (lambda: refold.verify(NET, None, X), "expected a torch.nn.Module, got NoneType"),
        (lambda: refold.tune("net", X), "expected a torch.nn.Module, got str"),
        (lambda: refold.collapse(None), "expected a torch.nn.Module, got NoneType"),
        (lambda: refold.expand(None), "expected a torch.nn.Module, got NoneType"),
        (lambda: refold.benchmark(NET, X), "models must be given by name"),
        (lambda: refold.benchmark({"a": NET}, X, "eager"), r"give ('eager',)"),
        (lambda: refold.train(output="run", model=3), "model must be a network, or the name of"),
        (lambda: refold.train(output="run", model=nn.Conv2d), "got the class Conv2d"),
        (lambda: refold.train(output=""), "output is an empty text"),
        (lambda: refold.train(output="run", data=""), "data is an empty text"),
        (lambda: refold.study("branches", output=None), "output must be a path, got NoneType"),
    ],
)
def test_functions_say_it_too(folder: Path, call: Callable[[], Any], said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        call()
    assert not list(folder.iterdir())
