"""`refold convert --stream`: a folder in, a folder out. Oracle: the same fold in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import refold
from cli.nets import branchy
from helpers.traps import live
from refold.checkpoint import read_state_dict
from refold.streaming import write_shards


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    return write_shards(live(branchy()).state_dict(), tmp_path / "in", shard_bytes=2000)[-1]


def test_files_become_files(run: Callable, net: Callable, tmp_path: Path, weights: Path) -> None:
    out = tmp_path / "out"
    words = ("convert", net("branchy"), "--checkpoint", weights, "--stream", "-o", out)
    done = run(*words, "--input-size", "3x6x6")
    assert done.code == 0, done.err
    assert "folds: 2" in done.out
    assert f"wrote {out / 'model.safetensors.index.json'}" in done.err
    model = branchy().eval()
    refold.load_checkpoint(model, weights)
    folded = refold.reparameterize(model, torch.zeros(1, 3, 6, 6)).state_dict()
    written = read_state_dict(out)
    assert folded.keys() == written.keys()
    assert all(torch.equal(folded[key], written[key]) for key in folded)
    told = json.loads(run(*words, "--input-size", "3x6x6", "--json").out)
    assert len(told["steps"]) == 2
    assert told["error"] < 1e-5


def test_what_does_not_fit_is_said(run: Callable, net: Callable, tmp_path: Path) -> None:
    words = ("convert", net("branchy"), "--stream", "-o", tmp_path / "out")
    done = run(*words)
    assert done.code == 2
    assert "--stream folds the weights of a --checkpoint" in done.err
    torch.save(branchy().state_dict(), tmp_path / "a.pth")
    given = (*words, "--checkpoint", tmp_path / "a.pth", "--input-size", "3x6x6")
    assert "leave out --drop-unused" in run(*given, "--half").err
    assert "is no safetensors file" in run(*given).err
    assert not (tmp_path / "out").exists()
