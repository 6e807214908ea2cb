"""How a run behaves changes what it takes, not what comes out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import refold
from refold.errors import InputError, TrainingError
from refold.training import Habits
from training.pictures import folders
from training.runs import TINY, last, same_bits

_HABITS = Habits(log_steps=1, workers=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders(tmp_path_factory.mktemp("images"), train=10, val=4)


def _run(output: Path, data: Path, habits: Habits, **changes: Any) -> Any:
    return refold.train(
        "folder", output=output, data=data, changes={**TINY, "epochs": 1, **changes},
        habits=habits, tracker="none", cpu=True,
    )  # fmt: skip


@pytest.mark.slow
def test_recomputing_gives_the_same_bits(tmp_path: Path, data: Path) -> None:
    _run(tmp_path / "a", data, _HABITS)
    _run(tmp_path / "b", data, replace(_HABITS, recompute=True))
    assert same_bits(last(tmp_path / "a"), last(tmp_path / "b"))


def test_recomputing_needs_blocks(tmp_path: Path, data: Path) -> None:
    plain = {"model": "torchvision:resnet18", "options": {}, "augment.size": 32}
    with pytest.raises(InputError, match="torchvision:resnet18 has none: add --block"):
        _run(tmp_path / "run", data, replace(_HABITS, recompute=True), **plain)


@pytest.mark.slow
def test_the_compiled_network_is_what_trains(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[bool] = []

    def compile(network: torch.nn.Module) -> None:
        own = network._call_impl
        network._compiled_call_impl = lambda *args: called.append(network.training) or own(*args)

    monkeypatch.setattr(torch.nn.Module, "compile", compile)
    _run(tmp_path / "a", data, replace(_HABITS, compile=True))
    assert True in called
    _run(tmp_path / "b", data, _HABITS)
    assert same_bits(last(tmp_path / "a"), last(tmp_path / "b"))


def test_what_cannot_be_compiled_is_said(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def fail(*args: Any) -> None:
        raise TorchDynamoException("no compiler")

    def compile(network: torch.nn.Module) -> None:
        network._compiled_call_impl = fail

    monkeypatch.setattr(torch.nn.Module, "compile", compile)
    with pytest.raises(TrainingError, match=r"cannot compile repvgg_a0 here \(no compiler\)"):
        _run(tmp_path / "run", data, replace(_HABITS, compile=True))
