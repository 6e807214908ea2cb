"""No command writes over what it reads, whatever link or spelling names it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch

from helpers.onnx_texts import model, written
from refold.cli.destination import sources_of
from refold.cli.options import Network
from refold.errors import InputError
from refold.files import require_apart
from refold.onnx_files import fold_onnx, prune_onnx, remove_residuals_onnx
from refold.sources.networks import build

SMALL = ("--input-size", "3x9x9")
TEXT = "(float[1,3,4,4] x) => (float y) { a = Conv(x, w) y = Mul(a, s) }"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hold a network as ONNX file, as weights and as program, and links to them."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path, model(TEXT, {"w": (8, 3, 1, 1), "s": (8, 1, 1)}))
    net = build(f"{Path(__file__).with_name('nets.py')}:branchy").model
    for name in ("net.pth", "net.safetensors", "net.bin"):
        torch.save(net.state_dict(), name)
    Path("net.pt2").write_bytes(b"refused before it is opened")
    for suffix in ("onnx", "pth", "pt2"):
        Path(f"link.{suffix}").symlink_to(f"net.{suffix}")
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ["convert", "net.onnx", "-o", "net.onnx"],
        ["convert", "net.onnx", "-o", "./net.onnx"],
        ["convert", "link.onnx", "-o", "net.onnx"],
        ["convert", "net.onnx", "-o", "link.onnx"],
        ["prune", "net.onnx", "--ratio", "0.5", "-o", "net.onnx"],
        ["remove-residuals", "net.onnx", "-o", "net.onnx"],
        ["convert", "net.pt2", "-o", "link.pt2"],
        ["prune", "net.pt2", "--ratio", "0.5", "-o", "net.pt2"],
        ["remove-residuals", "net.pt2", "-o", "net.pt2"],
        ["convert", "net.safetensors", "-o", "net.safetensors"],
        ["convert", "NET", *SMALL, "--checkpoint", "net.safetensors", "-o", "net.safetensors"],
        ["convert", "NET", *SMALL, "--checkpoint", "net.bin", "-o", "net.xml"],
        ["expand", "NET", *SMALL, "--checkpoint", "net.pth", "-o", "link.pth"],
        ["collapse", "NET", *SMALL, "--checkpoint", "net.pth", "-o", "net.pth"],
    ],
)
def test_what_is_read_stays(run: Callable, net: Callable, folder: Path, words: list[str]) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    done = run(*(net("branchy") if word == "NET" else word for word in words))
    assert done.code == 2, done.out
    [line] = done.err.splitlines()
    assert "that is read: choose another name" in line
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.parametrize("verb", [fold_onnx, remove_residuals_onnx])
def test_in_python_too(verb: Callable, folder: Path) -> None:
    with pytest.raises(InputError, match=r"would replace .* that is read"):
        verb("net.onnx", folder / "net.onnx")
    with pytest.raises(InputError, match=r"would replace .* that is read"):
        prune_onnx("net.onnx", "link.onnx", ratio=0)


def test_weights_beside_a_file_are_a_part_of_it(run: Callable, folder: Path) -> None:
    """They may be called as those of the result would be."""
    made = onnx.load("net.onnx")
    onnx.save_model(
        made, "a.onnx", save_as_external_data=True, location="b.onnx.data", size_threshold=0
    )
    before = Path("b.onnx.data").read_bytes()
    with pytest.raises(InputError, match=r"and the b.onnx.data beside it would replace"):
        fold_onnx("a.onnx", "b.onnx")
    Path("b.onnx.data").rename("b.bin")
    made = onnx.load("a.onnx", load_external_data=False)
    for tensor in made.graph.initializer:
        tensor.external_data[0].value = "b.bin"
    onnx.save(made, "a.onnx")
    assert run("convert", "a.onnx", "-o", "b.xml").code == 2
    assert Path("b.bin").read_bytes() == before
    fold_onnx("a.onnx", "c.onnx")


def test_a_folder_is_read_too(tmp_path: Path) -> None:
    """Of a run its settings and checkpoints: what it deployed may be written again."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "checkpoints/best.safetensors", "deploy.onnx"):
        (run / name).write_bytes(b"x")
    saved = tmp_path / "saved"
    shutil.copytree(run / "checkpoints", saved)
    read = sources_of(Network(str(run)))
    assert {file.name for file in read} == {"config.yaml", "best.safetensors"}
    for network in (Network(f"hf:{saved}"), Network("vgg", checkpoint=saved)):
        with pytest.raises(InputError, match="that is read"):
            require_apart(saved / "best.safetensors", sources_of(network))
    require_apart(run / "deploy.onnx", read)
