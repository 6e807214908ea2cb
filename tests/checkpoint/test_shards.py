"""A checkpoint in several files is read by its index, which may name no file elsewhere.

Oracle: the same tensors in one file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from refold.checkpoint import load_checkpoint, read_state_dict
from refold.errors import CheckpointError

NET = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def written(folder: Path, weight_map: Mapping[str, Any] | None = None) -> Path:
    """Write a network in two files, and an index."""
    state = NET.state_dict()
    names = sorted(state)
    halves = {ONE: names[:5], TWO: names[5:]}
    for file, keys in halves.items():
        safetensors.torch.save_file({key: state[key] for key in keys}, folder / file)
    known = {key: file for file, keys in halves.items() for key in keys}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map or known}))
    return index


def test_all_files_are_read(tmp_path: Path) -> None:
    read = read_state_dict(written(tmp_path))
    assert read.keys() == NET.state_dict().keys()
    assert all(torch.equal(read[key], value) for key, value in NET.state_dict().items())
    fresh = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    load_checkpoint(fresh, tmp_path / "model.safetensors.index.json")
    assert torch.equal(fresh[2].weight, NET[2].weight)
    with pytest.raises(CheckpointError, match=r"\d missing"):
        load_checkpoint(fresh, tmp_path / ONE)


def test_a_folder_of_hugging_face_is_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder; give a"):
        read_state_dict(tmp_path)
    written(tmp_path)
    assert read_state_dict(tmp_path).keys() == NET.state_dict().keys()
    torch.save({"w": torch.ones(2)}, tmp_path / "pytorch_model.bin")  # the safe one goes first
    assert read_state_dict(tmp_path).keys() == NET.state_dict().keys()


def test_an_address_is_no_file() -> None:
    for place in ("https://x.org/a.pth", Path("https://x.org/a.pth")):
        with pytest.raises(CheckpointError, match=r"x\.org/a.pth is an address: download it"):
            read_state_dict(place)


def test_files_of_torch_are_read_too(tmp_path: Path) -> None:
    torch.save(dict(NET.state_dict()), tmp_path / "a.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(NET.state_dict(), "a.bin")}))
    assert read_state_dict(index).keys() == NET.state_dict().keys()


@pytest.mark.parametrize("name", ["../secret.pth", "/etc/passwd", "", 3, "a/b.safetensors"])
def test_a_file_elsewhere_is_refused(tmp_path: Path, name: object) -> None:
    (tmp_path / "inner").mkdir()
    torch.save({"w": torch.ones(2)}, tmp_path / "secret.pth")
    index = written(tmp_path / "inner", {"w": name})
    with pytest.raises(CheckpointError, match="which is no file beside it"):
        read_state_dict(index)


def test_what_is_incomplete_is_named(tmp_path: Path) -> None:
    index = written(tmp_path, {"0.weight": ONE, "other": ONE})
    with pytest.raises(CheckpointError, match=f"{ONE} lacks other, which its index says"):
        read_state_dict(index)
    (tmp_path / ONE).unlink()
    with pytest.raises(CheckpointError, match=f"lists {ONE}, which is not beside it"):
        read_state_dict(index)
    for text in ("{", "[]", '{"weight_map": 3}', "{}"):
        index.write_text(text)
        with pytest.raises(CheckpointError, match="is no index of weights: it must hold"):
            read_state_dict(index)
    index.write_text('{"weight_map": {}}')
    with pytest.raises(CheckpointError, match="lists no weights"):
        read_state_dict(index)


def test_what_is_no_path_is_said() -> None:
    for place, what in ((NET.state_dict(), "a OrderedDict; a dict of tensors is"), (None, "None")):
        with pytest.raises(CheckpointError, match=f"is the path of a file, got .*{what}"):
            load_checkpoint(NET, place)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="an empty text"):
        load_checkpoint(NET, "")
