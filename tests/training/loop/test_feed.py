"""What travels to the device and back: batches ahead of a step, its loss a step behind."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from refold.errors import DivergedError
from refold.training.data.augment import Numbers
from refold.training.data.loader import Batch
from refold.training.loop.engine import Engine
from refold.training.loop.feed import Feed
from training.pictures import folders
from training.runs import last, records, same_bits, tiny


def batch(at: int) -> Batch:
    images = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8)
    return Batch(images, torch.full((4,), at), torch.ones(4).bool(), (at,))


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_feed_gives_every_batch_in_order(channels_last: bool) -> None:
    loaded, numbers = [batch(at) for at in range(3)], Numbers([0.1, 0.2, 0.3], [0.5])
    fed = list(Feed(loaded, numbers, "cpu", channels_last=channels_last))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for one, other in zip(loaded, fed, strict=True):
        assert torch.equal(numbers(one.images), other.images)
        assert other.images.is_contiguous(memory_format=layout)
        assert torch.equal(one.targets, other.targets)
        assert (one.valid is other.valid, one.unreadable) == (True, other.unreadable)


def test_images_travel_on_as_many_devices_as_there_are() -> None:
    [fed] = Feed([batch(0)], Numbers([0.5], [0.5]), "meta")
    assert (fed.images.device.type, fed.images.dtype) == ("meta", torch.float32)
    assert (fed.targets.device.type, fed.valid.device.type) == ("meta", "cpu")


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read losses as late as on a GPU."""
    ready: Any = Engine.__post_init__

    def made(self: Any) -> None:
        ready(self)
        self._late = 1

    monkeypatch.setattr(Engine, "__post_init__", made)


def measured(run: Path) -> list[dict[str, Any]]:
    kept = ("kind", "step", "epoch", "loss", "lr", "train_loss", "train_accuracy", "val_top1")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in kept if key in row} for row in rows]


@pytest.mark.slow
def test_a_loss_that_is_read_late_is_the_same_loss(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    data = folders(tmp_path / "data", train=12)
    tiny(tmp_path / "now", data, log_steps=2, changes={"ema": None})
    request.getfixturevalue("late")
    tiny(tmp_path / "late", data, log_steps=2, save_steps=5, changes={"ema": None})
    assert measured(tmp_path / "now") == measured(tmp_path / "late")
    assert {row["step"] for row in records(tmp_path / "late", "step")} == {2, 4, 6, 8, 10, 12}
    assert same_bits(last(tmp_path / "now"), last(tmp_path / "late"))


class Breaks(nn.Module):
    """Gives NaN from its third training step on."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.calls = nn.Linear(3, 2), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return self.head(x.mean((2, 3))) * (math.nan if self.calls > 2 else 1.0)


@pytest.mark.parametrize("save_steps", [0, 3])
def test_a_late_nan_names_its_own_step_and_is_never_saved(
    tmp_path: Path, late: None, save_steps: int
) -> None:
    data = folders(tmp_path / "data", train=24)
    with pytest.raises(DivergedError, match=r"the loss of step 3 of epoch 1 is nan"):
        tiny(
            tmp_path / "run", data, save_steps=save_steps, log_steps=2, model=Breaks(),
            changes={"ema": None},
        )  # fmt: skip
    assert not (tmp_path / "run" / "checkpoints" / "last").exists()
    assert [record["step"] for record in records(tmp_path / "run", "step")] == [2]
