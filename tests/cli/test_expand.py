"""Branches into a network and out of it again, through files; and our own networks by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import refold
from refold.sources.networks import build

pytestmark = pytest.mark.slow

Net = Callable[[str], str]
SMALL = ("--input-size", "3x9x9")


def randomised(model: nn.Module, seed: int) -> nn.Module:
    """Give every tensor other values; scales of both signs."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            drawn = torch.rand(tensor.shape, generator=generator) + 0.5
            sign = 1 if name.endswith("running_var") else torch.sign(drawn - 0.8)
            tensor.copy_(drawn * sign)
    return model.eval()


@pytest.fixture
def stock(net: Net, tmp_path: Path) -> nn.Module:
    """Return a network whose weights lie in net.pt, as training leaves them."""
    model = randomised(build(net("branchy")).model, 1)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "net.pt")
    return model


def answer(model: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        return model.eval()(torch.randn(2, 3, 9, 9, generator=generator))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_network_widens_trains_and_becomes_itself_again(
    run: Callable, net: Net, tmp_path: Path, stock: nn.Module, suffix: str
) -> None:
    words = [net("branchy"), *SMALL, "--block", "acb"]
    wide_file, plain_file = tmp_path / f"wide{suffix}", tmp_path / f"plain{suffix}"
    done = run("expand", *words, "--checkpoint", tmp_path / "net.pt", "-o", wide_file)
    assert done.code == 0, done.err
    assert "0 becomes ACBlock" in done.out
    assert "blocks: 3" in done.out
    wide = refold.expand(build(net("branchy")).model, "acb")
    refold.load_checkpoint(wide, wide_file)
    torch.testing.assert_close(answer(wide), answer(stock))
    randomised(wide, 2)
    torch.save(wide.state_dict(), tmp_path / "trained.pth")
    done = run("collapse", *words, "--checkpoint", tmp_path / "trained.pth", "-o", plain_file)
    assert done.code == 0, done.err
    plain = build(net("branchy")).model
    refold.load_checkpoint(plain, plain_file)
    torch.testing.assert_close(answer(plain), answer(wide), rtol=1e-4, atol=1e-4)
    assert float((answer(plain) - answer(stock)).abs().max()) > 0.1


def test_the_weights_of_a_run_say_what_network_they_are_of(run: Callable, tmp_path: Path) -> None:
    """The factory has seven classes by itself, and no size: a run of two classes, 12 wide."""
    images = [np.full((12, 12, 3), 200 * label, np.uint8) for label in (0, 1)]
    for label, pixels in enumerate(images):
        for part in ("train", "val"):
            (tmp_path / "i" / part / "ab"[label]).mkdir(parents=True)
            Image.fromarray(pixels).save(tmp_path / "i" / part / "ab"[label] / "0.png")
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef build(num_classes=7):\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),"
        " nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))\n"
    )
    model, done = f"{tmp_path / 'net.py'}:build", tmp_path / "run"
    words = ["--data", tmp_path / "i", "--model", model, "--block", "acb", "--epochs", "1", "--cpu"]
    words += ["--image-size", "12", "--workers", "0", "--tracker", "none", "-o", done]
    assert run("train", *words).code == 0
    stock = tmp_path / "stock.safetensors"
    back = run("collapse", model, "--block", "acb", "--checkpoint", done, "-o", stock)
    assert back.code == 0, back.err
    own = load_file(done / "stock.safetensors")
    assert all(torch.allclose(value, own[key]) for key, value in load_file(stock).items())
    back = run("collapse", done, "--block", "acb", "--checkpoint", done, "-o", stock)
    assert "has branches already: MODEL is the network without them" in back.err
    for weights in (done, done / "checkpoints" / "last", done / "stock.safetensors"):
        made = run("convert", model, "--checkpoint", weights, "-o", tmp_path / "net.xml")
        assert made.code == 0, made.err
        assert f"{weights}: 2 classes, images of 3x12x12" in made.err
        assert run("predict", tmp_path / "net.xml", tmp_path / "i" / "val").code == 0
    pruned = tmp_path / "pruned.safetensors"
    cut = run(
        "prune", model, "--checkpoint", done, "--ratio", "0.5", "--round-to", "1", "-o", pruned
    )
    assert cut.code == 0, cut.err
    assert run("inspect", pruned, "--json").code == 0
    assert build(str(pruned)).model[-1].out_features == 2
    wrong = run("inspect", model, "--checkpoint", done, "--num-classes", "3")
    assert wrong.code == 2
    assert "was trained for 2 classes; leave the option out" in wrong.err
    other = run("inspect", "torchvision:resnet18", "--checkpoint", done)
    assert other.code == 2
    assert f"give the run itself as MODEL: {done}" in other.err


def test_both_print_json_alone(run: Callable, net: Net, tmp_path: Path, stock: nn.Module) -> None:
    wide, plain = tmp_path / "wide.pth", tmp_path / "plain.pth"
    words = [net("branchy"), *SMALL, "--block", "dbb", "--where", "3.*", "--json"]
    done = json.loads(run("expand", *words, "-o", wide).out)
    assert [row["where"] for row in done["steps"]] == ["3.wide.0", "3.point.0"]
    assert [row["where"] for row in done["kept"]] == ["0"]
    undone = json.loads(run("collapse", *words, "--checkpoint", wide, "-o", plain).out)
    assert undone["before"] == done["after"]
    assert undone["after"] == done["before"]
    numbers = sum(p.numel() for p in stock.parameters())
    assert done["before"]["parameters"] == numbers < done["after"]["parameters"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["expand", "branchy", "-o", "a.pth", "--block", "dbp"], "there is no block 'dbp'"),
        (["expand", "branchy", "-o", "a.onnx"], "end it in one of .safetensors .pth .pt"),
        (["expand", "branchy", "-o", "a.pth", "--where", "7.*"], "'7.*' matches no convolution"),
        (["expand", "branchy", "-o", "a.pth", "--block", "dilated"], "can become dilated: kept at"),
        (["expand", "branchy", "-o", "a.pth", "--checkpoint", "no.pt"], "no.pt does not exist"),
        (["collapse", "branchy", "-o", "a.pth"], "Missing option '--checkpoint'"),
        (["collapse", "branchy", "-o", "a.pth", "--checkpoint", "net.pt"], "must hold"),
        (["collapse", "branchy", "-o", "a.onnx", "--checkpoint", "net.pt"], "a.onnx"),
    ],
)
def test_a_failure_leaves_no_file(
    run: Callable,
    net: Net,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stock: nn.Module,
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*[net(word) if word == "branchy" else word for word in words], *SMALL)
    assert result.code == 2
    assert result.out == ""
    assert said in result.err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt"]


def test_our_networks_are_listed_with_their_size_in_both_forms(run: Callable) -> None:
    lines = run("models", "*cifar_quick").out.splitlines()
    assert lines[0].split() == ["network", "image", "parameters", "multiply-adds"]
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in lines[1:]}
    assert list(rows) == ["acnet_cifar_quick", "cifar_quick", "dbb_cifar_quick"]
    assert rows["cifar_quick"] == "3x32x32 181 k -> 181 k 10.8 M -> 10.8 M"
    records = json.loads(run("models", "repvgg_a0", "--json").out)
    assert [record["name"] for record in records] == ["repvgg_a0", "timm:repvgg_a0"]
    for form, size, work in (("train", 9.11, 1.51), ("deploy", 8.31, 1.36)):  # as published
        found = records[0][form]
        assert round(found["parameters"] / 1e6, 2) == size
        assert round(found["macs"] / 1e9, 2) == work
    assert records[0]["input_size"] == [3, 224, 224]


def test_names_come_without_counting(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: object, **more: object) -> None:
        raise AssertionError("nothing is built")

    monkeypatch.setattr(refold, "create_model", fail)
    lines = run("models", "--names").out.split()
    ours = refold.list_models()
    assert lines[: len(ours)] == ours
    assert lines[len(ours)].startswith("timm:")
    assert json.loads(run("models", "--names", "--json", "mobileone_s0").out) == [
        "mobileone_s0", "timm:mobileone_s0",
    ]  # fmt: skip


def test_a_command_takes_a_network_of_ours(run: Callable, tmp_path: Path) -> None:
    out = tmp_path / "net.safetensors"
    done = run("convert", "dbb_cifar_quick", "--json", "-o", out)
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert not record["proof"]["exact"]["vacuous"]  # its norms were given live statistics
    convs = (3 * 25 + 1) * 32 + (32 * 25 + 1) * 32 + (32 * 25 + 1) * 64
    assert record["after"]["parameters"] == convs + (576 + 1) * 64 + (64 + 1) * 1000
