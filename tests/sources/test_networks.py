"""Every form of MODEL builds, and every mistake in one is a sentence that says what to do."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from refold.errors import InputError
from refold.sources.networks import build, is_zoo

Net = Callable[[str], str]


def test_a_factory_builds_in_evaluation_mode(net: Net) -> None:
    model = build(net("branchy")).model
    assert isinstance(model, nn.Sequential)
    assert not any(module.training for module in model.modules())


def test_a_network_may_stand_ready_in_the_file(net: Net) -> None:
    assert isinstance(build(net("ready")).model, nn.Module)


def test_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_net.py").write_text("WIDTH = 5\n")
    (tmp_path / "net.py").write_text(
        "from torch import nn\nfrom neighbour_of_net import WIDTH\n"
        "def build():\n    return nn.Linear(WIDTH, 1)\n"
    )
    model = build(f"{tmp_path / 'net.py'}:build").model
    assert isinstance(model, nn.Linear)
    assert model.in_features == 5


def test_a_file_edited_within_a_second_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = tmp_path / "net.py"
    for width in (4, 5):
        file.write_text(f"from torch import nn\nbuild = lambda: nn.Linear(2, {width})\n")
        os.utime(file, (1e9, 1e9))
        assert build(f"{file}:build").model.out_features == width
    assert [path.name for path in tmp_path.iterdir()] == ["net.py"]


def test_zoo_networks_build_without_weights() -> None:
    assert isinstance(build("timm:resnet10t").model, nn.Module)
    assert isinstance(build("torchvision:squeezenet1_1").model, nn.Module)


def test_an_exported_program_brings_its_inputs(tmp_path: Path) -> None:
    program = torch.export.export(nn.Conv2d(2, 3, 3).eval(), (torch.zeros(1, 2, 8, 9),))
    torch.export.save(program, tmp_path / "net.pt2")
    model, inputs, sizes, _ = build(str(tmp_path / "net.pt2"))
    assert sizes == ()  # its batch is fixed
    assert inputs is not None
    assert inputs[0].shape == (1, 2, 8, 9)
    assert not any(module.training for module in model.modules())
    assert model(*inputs).shape == (1, 3, 6, 7)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:repghostnet_10", "did you mean repghostnet_"),
        ("timm:hf-hub:someone/resnet10t", "no network"),
        ("torchvision:squeezenet", "did you mean squeezenet1_"),
        ("vgg11", "give timm:NAME, torchvision:NAME"),
        ("net.py", "net.py:FUNCTION"),
        ("nowhere/net.py:build", "there is no file 'nowhere/net.py'"),
        ("nowhere/net.pt2", "there is no file"),
    ],
)
def test_an_unknown_name_is_explained(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        build(name)


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("branchi", "did you mean branchy"),
        ("not_a_network", "returned str, but must return an nn.Module"),
        ("broken", "ValueError: no such file of ours$"),
    ],
)
def test_a_useless_factory_is_explained(net: Net, factory: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        build(net(factory))


def test_a_file_that_fails_is_explained(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import a_module_that_nobody_has\n")
    with pytest.raises(
        InputError, match=r"could not be run \(line 1 of net\.py\): ModuleNotFoundError"
    ):
        build(f"{tmp_path / 'net.py'}:build")


def test_a_junk_program_is_explained(tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(b"junk")
    with pytest.raises(InputError, match="is not an exported program"):
        build(str(tmp_path / "net.pt2"))


def test_only_zoo_names_are_untrained() -> None:
    assert is_zoo("timm:resnet18")
    assert is_zoo("torchvision:resnet18")
    assert not is_zoo("net.py:build")
    assert not is_zoo("net.pt2")
