"""A run that is killed at any moment and goes on ends with the weights of one that was not.

Oracle: the bits of every tensor of the last checkpoint of an uninterrupted run: weights, moving
average, optimizer.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from refold.errors import InputError
from refold.training.stopping import Stopped
from training.pictures import folders
from training.runs import WHOLE, AtStep, Fragile, last, records, same_bits, start, tiny

pytestmark = pytest.mark.slow

KILL = Path(__file__).with_name("kill.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders(tmp_path_factory.mktemp("data"), train=11, val=2)  # 22 images: 5 steps of 4


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    tiny(run, data)
    return run


@pytest.mark.parametrize(
    ("where", "workers", "named"),
    [
        # in the middle of the second epoch, past the checkpoint of step 6
        pytest.param("step:8", (0, 1), 6, marks=pytest.mark.zoo),
        # the third checkpoint, that of step 5, half-written
        pytest.param("write:3", (1, 0), 4, marks=pytest.mark.zoo),
        # `last` of step 8: whole, with no pointer to it
        pytest.param("named:6", (0, 0), 6, marks=pytest.mark.zoo),
    ],
)
def test_killed_and_resumed_to_the_same_bits(
    tmp_path: Path, data: Path, whole: Path, where: str, workers: tuple[int, int], named: int
) -> None:
    run = tmp_path / "run"
    killed = start(KILL, run, data, workers[0], where)
    assert killed.returncode == -9, killed.stderr
    standing = (run / "checkpoints" / "last").read_text().strip()
    assert standing == f"step-{named:09}.safetensors"
    assert not (run / "summary.json").exists()
    tiny(run, data, workers=workers[1], resume=True)
    assert same_bits(last(run), last(whole))
    assert [r["loss"] for r in records(run, "step")] == [r["loss"] for r in records(whole, "step")]
    files = {path.name for path in (run / "checkpoints").iterdir()}
    kept = {f"step-{step:09}.safetensors" for step in (5, named, 10)}
    assert files <= {"last", "best", *kept}
    one, other = (json.loads((at / "summary.json").read_text()) for at in (run, whole))
    assert {**one, "files": None} == {**other, "files": None}


def test_workers_change_no_bit_and_the_seed_does(tmp_path: Path, data: Path, whole: Path) -> None:
    tiny(tmp_path / "run", data, workers=2)
    assert same_bits(last(tmp_path / "run"), last(whole))
    assert not same_bits(last(tmp_path / "run"), last_of_another_seed(tmp_path, data))


def last_of_another_seed(tmp_path: Path, data: Path):
    tiny(tmp_path / "other", data, changes={"seed": 1})
    return last(tmp_path / "other")


@pytest.mark.parametrize("at", [3, 10])
def test_ctrl_c_finishes_the_step_and_saves(tmp_path: Path, data: Path, at: int) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    tiny(whole, data, model=net())
    if at < 10:
        with pytest.raises(Stopped):
            tiny(run, data, model=net(), reporter=AtStep(at))
        assert (run / "checkpoints" / "last").read_text() == f"step-{at:09}.safetensors\n"
        tiny(run, data, model=net(), resume=True)
    else:  # asked in the last step of all: there is nothing left to stop
        tiny(run, data, model=net(), reporter=AtStep(at))
    assert same_bits(last(run), last(whole))


def test_what_an_optimizer_counts_for_a_group_is_kept(tmp_path: Path, data: Path) -> None:
    whole, run, changes = tmp_path / "whole", tmp_path / "run", {"optimizer.name": "lamb"}
    tiny(whole, data, model=net(), changes=changes)
    with pytest.raises(Stopped):
        tiny(run, data, model=net(), changes=changes, reporter=AtStep(3))
    tiny(run, data, model=net(), resume=True)
    assert float(last(run)["group.0.step"]) == 10
    assert same_bits(last(run), last(whole))


def net() -> Fragile:
    import torch

    torch.manual_seed(5)
    return Fragile()


@pytest.mark.zoo  # torch 2.14.1 crashes in its own backward pass on some processors
def test_channels_last_goes_on_to_the_same_bits(tmp_path: Path, data: Path, whole: Path) -> None:
    changes = {"channels_last": True}
    done = tiny(tmp_path / "whole", data, changes=changes)
    assert all(p.is_contiguous() for p in done.model.parameters())  # at the end as it ever was
    assert done.summary["error"]["float64"] < 1e-9
    run = tmp_path / "run"
    with pytest.raises(Stopped):
        tiny(run, data, changes=changes, reporter=AtStep(7))
    tiny(run, data, resume=True)
    assert same_bits(last(run), last(tmp_path / "whole"))
    # The same sums in another order: the same training but for rounding.
    one, other = ([r["loss"] for r in records(at, "step")] for at in (whole, tmp_path / "whole"))
    assert one == pytest.approx(other, rel=1e-2)
    assert one != other


def test_a_run_is_not_overwritten(data: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"already holds a run: continue it with .* --resume"):
        tiny(whole, data)
    with pytest.raises(InputError, match="holds no run"):
        tiny(tmp_path, data, resume=True)
    with pytest.raises(InputError, match="started with a network by name"):
        tiny(whole, data, resume=True, model=net())


def test_a_finished_run_is_only_written_again(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    tiny(run, data, model=net(), changes=WHOLE)
    before, summary = last(run), (run / "summary.json").read_text()
    (run / "deploy.onnx").unlink()
    tiny(run, data, model=net(), resume=True)
    assert (run / "deploy.onnx").exists()
    assert (run / "summary.json").read_text() == summary
    assert same_bits(before, last(run))
