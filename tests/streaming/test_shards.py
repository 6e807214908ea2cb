"""Safetensors written tensor by tensor. Oracle: the reader of the safetensors library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from refold.errors import ExportError, InputError
from refold.streaming import shards, without_weights, write_shards

TYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64,
]  # fmt: skip


def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    found = {f"t{n}": torch.randn(3, 5).to(kind) for n, kind in enumerate(TYPES)}
    kernel = torch.randn(2, 3, 4, 4)
    return found | {
        "empty": torch.empty(0, 3),
        "number": torch.tensor(7),
        "channels last": kernel.to(memory_format=torch.channels_last),
        "turned": kernel.transpose(0, 3),
        "nan": torch.tensor([float("nan"), float("inf")]),
        "ä": torch.ones(1),
    }


def same(one: Tensor, other: Tensor) -> bool:
    return (
        one.dtype == other.dtype
        and torch.equal(
            one.contiguous().reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)
        )
        and one.shape == other.shape
    )


@pytest.mark.filterwarnings("ignore:Casting complex values")
def test_every_type_and_layout_is_read_back(tmp_path: Path) -> None:
    tensors = state()
    assert write_shards(tensors, tmp_path / "a.safetensors") == (tmp_path / "a.safetensors",)
    read = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert read.keys() == tensors.keys()
    assert all(same(tensor, read[name]) for name, tensor in tensors.items())


@pytest.mark.filterwarnings("ignore:Casting complex values")
def test_several_files_replace_those_of_before(tmp_path: Path) -> None:
    tensors = state()
    many = write_shards(tensors, tmp_path / "out", shard_bytes=100)
    assert len(many) > 5
    index = json.loads(many[-1].read_text())
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    for name, file in index["weight_map"].items():
        assert same(tensors[name], safetensors.torch.load_file(tmp_path / "out" / file)[name])
    few = write_shards(tensors, tmp_path / "out", shard_bytes=10**6)
    assert sorted((tmp_path / "out").iterdir()) == sorted(few)
    assert len(few) == 2


def test_what_reads_back_otherwise_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = shards._compare

    def spoiled(state: dict[str, Tensor], order: list[str], path: Path, start: int) -> None:
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
        compare(state, order, path, start)

    monkeypatch.setattr(shards, "_compare", spoiled)
    with pytest.raises(ExportError, match=r"w reads back from .* with other values"):
        write_shards({"w": torch.zeros(9)}, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_type_that_the_format_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"w cannot be written .* no torch\.complex128"):
        write_shards({"w": torch.zeros(2, dtype=torch.complex128)}, tmp_path / "a.safetensors")


def test_large_parameters_alone_are_without_numbers() -> None:
    with without_weights(least=400):
        small, large = nn.Linear(5, 5), nn.Linear(50, 50)
        large.register_buffer("table", torch.ones(1000))
        large.twin = large.weight
    assert large.weight.is_meta
    assert large.twin is large.weight
    assert not small.weight.is_meta
    assert not large.table.is_meta
    assert not nn.Linear(50, 50).weight.is_meta  # afterwards all is as before
