"""Results in files: the same numbers in the same order, and nothing left on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from refold.engine import memory
from refold.engine.memory import fresh, made_ready
from refold.engine.outside import keeps_outside, kept_outside, outside, room_outside
from refold.errors import InputError

KINDS = [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool]


@pytest.mark.parametrize("dtype", KINDS)
def test_a_result_keeps_numbers_and_layout(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.randn(8, 4, 3, 3).to(dtype)
    last = tensor.to(memory_format=torch.channels_last)
    with kept_outside(tmp_path, least=64):
        for given in (tensor, last, tensor.transpose(0, 1)):
            kept = outside(given)
            assert kept is not given
            assert torch.equal(kept, given)
            assert kept.stride() == given.stride()
            assert outside(kept) is kept
    assert not list(tmp_path.iterdir())
    kept += kept  # it can be written to, and outlives the folder's files


def test_small_tensors_and_others_stay_in_memory(tmp_path: Path) -> None:
    small, large, blank = torch.ones(2), torch.ones(100), torch.ones(100, device="meta")
    assert not keeps_outside()
    assert outside(large) is large
    assert room_outside(large.shape, large) is None
    with kept_outside(tmp_path, least=64):
        assert keeps_outside()
        assert outside(small) is small
        assert outside(blank) is blank
        assert fresh(small.shape, small).shape == small.shape
        assert outside(room := fresh(large.shape, large)) is room


def test_no_memory_is_made_ready_for_what_goes_into_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_cores", lambda: {0, 1})
    monkeypatch.setattr(memory, "_WORTH_IT", 1)
    with made_ready([torch.empty(64)]):
        assert memory._store.get() is not None
    with kept_outside(tmp_path), made_ready([torch.empty(64)]):
        assert memory._store.get() is None


def test_no_room_is_an_error_that_no_fold_catches(tmp_path: Path) -> None:
    def fold() -> None:
        try:
            outside(torch.ones(100))
        except Exception as error:  # as a fold does, to leave one step out
            raise AssertionError from error

    with (
        pytest.raises(InputError, match="no room for the new weights"),
        kept_outside(tmp_path / "gone" / "folder", least=64),
    ):
        fold()
