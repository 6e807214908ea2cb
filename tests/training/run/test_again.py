"""What a run that goes on is asked for, finds, and may do: settings, images, room, company."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from refold.errors import CheckpointError, InputError, TrainingError
from refold.training import open_data
from refold.training.data.inventory import difference, inventory
from refold.training.loop.run_folder import RunFolder
from refold.training.recipes.cookbook import load_recipe
from refold.training.run.begun import Begun
from refold.training.run.claim import LOCK, claim, require_unclaimed
from refold.training.run.recipe_differences import require_same
from refold.training.stopping import Stopped
from training.pictures import cifar10, folders, masks, picture, shards
from training.runs import TINY, AtStep, Fragile, Told, last, records, same_bits, tiny

pytestmark = pytest.mark.slow


def net() -> Fragile:
    torch.manual_seed(5)
    return Fragile()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders(tmp_path_factory.mktemp("data"), train=11, val=2)  # 5 steps of 4 an epoch


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    tiny(run, data, model=net())
    return run


@pytest.fixture(scope="module")
def begun(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that was stopped after step 7."""
    run = tmp_path_factory.mktemp("runs") / "begun"
    with pytest.raises(Stopped):
        tiny(run, data, model=net(), reporter=AtStep(7))
    return run


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "run"))


def files(run: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def again(run: Path, **options: Any) -> Any:
    """Go on, with more words than it takes."""
    import refold
    from refold.training import Habits

    habits = Habits(log_steps=1, workers=0)
    return refold.train(
        options.pop("recipe", None), output=run, model=net(), resume=True, habits=habits, cpu=True,
        tracker="none", **options,
    )  # fmt: skip


# settings


def test_the_same_words_go_on(
    run: Path, data: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    again(run, recipe="folder", data=data.name, changes=TINY)  # the same place, said otherwise
    assert same_bits(last(run), last(whole))
    assert [r["loss"] for r in records(run, "step")] == [r["loss"] for r in records(whole, "step")]
    assert not (run / LOCK).exists()


def test_other_settings_are_refused_and_named(run: Path, data: Path) -> None:
    before = files(run)
    refusal = r"--epochs 30, but the run was started with 2: to continue .* drop these options"
    with pytest.raises(InputError, match=refusal):
        again(run, recipe="folder", data=data, changes={**TINY, "epochs": 30})
    with pytest.raises(InputError, match=r"--lr 0.5, but .* 0.02; --set ema=0.5, but .* 0.9:"):
        again(run, changes={"optimizer.lr": 0.5, "ema": 0.5, "epochs": 2})
    with pytest.raises(InputError, match=r"and \d+ more: to continue"):
        again(run, recipe="digits")
    assert files(run) == before


def test_a_batch_that_was_fitted_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    recipe, run = load_recipe("folder"), Path("run")
    smaller = {"batch_size": 5, "optimizer.lr": 0.01}
    used = load_recipe("folder", smaller)
    begun = Begun(used, recipe, "data", given=False)
    folder = RunFolder(tmp_path)
    folder.configure(begun.config())
    from refold.training.run.begun import begun_with

    found = begun_with(folder, None)
    assert found == begun
    for wanted in (recipe, used):
        require_same(found, wanted, run)
    with pytest.raises(InputError, match=r"--batch-size 6, but the run was started with"):
        require_same(found, load_recipe("folder", {**smaller, "batch_size": 6}), run)
    with pytest.raises(InputError, match=r"--block dbb, but the run was started with none"):
        require_same(found, load_recipe("folder", {"block": "dbb"}), run)


def test_the_file_of_a_network_may_be_named_in_two_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/usr")
    recipes = [load_recipe("folder", {"model": name}) for name in ("net.py:f", "/usr/net.py:f")]
    require_same(Begun(recipes[0], recipes[0], "data", given=False), recipes[1], Path("run"))


# images


def test_images_that_changed_are_named(run: Path, data: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(data, tmp_path / "other"))
    told = Told()
    again(Path(shutil.copytree(run, tmp_path / "moved")), data=other, reporter=told)
    assert told.notes == []  # the same images at another place are the same
    assert f"data: {other}" in (tmp_path / "moved" / "config.yaml").read_text()
    (other / "train" / "ant" / "0.png").unlink()
    picture(77, 0).save(other / "train" / "bee" / "new.png")
    picture(78, 0, 14).save(other / "val" / "bee" / "1.png")
    before = files(run)
    refusal = (
        r"the images are not those that the run .* was started with: 3 files differ: "
        r"train/bee/new.png is new; train/ant/0.png is gone; val/bee/1.png had \d+ bytes, class 1 "
        r"and has \d+ bytes, class 1; restore them, or pass --data-changed"
    )
    with pytest.raises(InputError, match=refusal):
        again(run, data=other)
    assert files(run) == before
    again(run, data=other, data_changed=True, reporter=told)
    assert "3 files differ" in told.notes[0]
    told = Told()
    again(run, reporter=told)  # from now on these are its images
    assert not any("differ" in note for note in told.notes)


def test_fewer_images_lose_no_measurement(run: Path, data: Path, tmp_path: Path) -> None:
    """The steps count on, though an epoch has fewer of them now."""
    other = Path(shutil.copytree(data, tmp_path / "other"))
    for number in range(8):
        (other / "train" / "ant" / f"{number}.png").unlink()
    again(run, data=other, data_changed=True)
    steps = [record["step"] for record in records(run, "step")]
    assert steps[:7] == [1, 2, 3, 4, 5, 6, 7]
    assert steps == list(range(1, len(steps) + 1))
    assert [record["epoch"] for record in records(run, "epoch")] == [1, 2]


def test_a_run_without_a_list_of_images_says_so(run: Path) -> None:
    (run / "images.txt.gz").unlink()
    told = Told()
    again(run, reporter=told)
    assert "has no list of its images" in told.notes[0]
    assert (run / "images.txt.gz").exists()
    (run / "images.txt.gz").write_bytes(gzip.compress(b"x")[:-5])
    with pytest.raises(InputError, match=r"images.txt.gz, the list of the run's images, is dama"):
        again(run)


@pytest.mark.parametrize(
    ("kind", "make", "pattern"),
    [
        ("classify", folders, "val/bee/*.png"),
        ("segment", masks, "train/masks/*.png"),
        ("classify", shards, "train*.tar"),
        ("classify", cifar10, "*/test_batch.bin"),
    ],
)
def test_every_kind_of_data_has_an_inventory(
    tmp_path: Path, kind: Any, make: Any, pattern: str
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        make(tmp_path / name)
    one, two = (inventory(open_data(tmp_path / at, kind), tmp_path / at) for at in ("one", "two"))
    assert difference(one, two) is None
    file = next((tmp_path / "two").glob(pattern))
    content = bytearray(file.read_bytes())
    content[0] ^= make is cifar10  # whose class it is; all else grows, and still reads
    file.write_bytes(content + bytes(0 if make is cifar10 else 512))
    found = difference(one, inventory(open_data(tmp_path / "two", kind), tmp_path / "two"))
    assert str(found).startswith("1 file differs: ")


def test_an_order_is_part_of_the_images() -> None:
    assert difference("a\t1\nb\t2\n", "b\t2\na\t1\n") == "they come in another order"
    many = "".join(f"{n}\t1\n" for n in range(9))
    assert difference("", many) == "9 files differ: 0 is new; 1 is new; 2 is new; and 6 more"


# room


@pytest.mark.parametrize("full", ["checkpoint", "pointer", "metrics"])
def test_a_full_disk_stops_a_run_that_goes_on_when_there_is_room(
    tmp_path: Path, data: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    run, write, count = tmp_path / "run", safetensors.torch.save_file, [0]
    at = int(torch.randint(3, 6, (), generator=torch.Generator().manual_seed(len(full))))

    def no_room(*words: Any) -> None:
        count[0] += 1
        if count[0] >= at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def save(tensors: Any, path: Path, metadata: Any = None) -> None:
        write(tensors, path, metadata)
        if count[0] + 1 >= at:
            os.truncate(path, 99)
        no_room()

    def before(method: Any) -> Any:
        def first(*words: Any) -> Any:
            no_room()
            return method(*words)

        return first

    from refold.training.loop.saves import Saves

    with monkeypatch.context() as patch:
        if full == "checkpoint":
            patch.setattr(safetensors.torch, "save_file", save)
        elif full == "pointer":
            patch.setattr(Saves, "_point", before(Saves._point))
        else:
            patch.setattr(RunFolder, "measure", before(RunFolder.measure))
        with pytest.raises(
            TrainingError, match=r"(?i)no space.*make room and pass --resume to continue"
        ):
            tiny(run, data, model=net(), save_steps=1)
    assert not list(run.rglob(".refold-*"))
    again(run)
    assert same_bits(last(run), last(whole))
    assert len(records(run, "step")) == 10


# company


HOLDER = """
import sys, time
from pathlib import Path
from refold.training.run.claim import claim
with claim(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_processes_do_not_train_in_one_folder(run: Path) -> None:
    source = Path(__file__).parents[3] / "src"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(source)}, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        before = files(run)
        with pytest.raises(InputError, match=rf"is in use by process {holder.pid} on .* wait"):
            again(run)
        with pytest.raises(InputError, match="is in use by"):  # not: it already holds a run
            tiny(run, run.parent)
        with pytest.raises(InputError, match="is in use by"):  # whatever else is wrong
            again(run, changes={"epochs": 9})
        assert files(run) == before
    finally:
        holder.kill()  # its lock goes with it
        holder.communicate()
    assert (run / LOCK).exists()
    require_unclaimed(run)  # its owner was killed
    with claim(run):
        pass
    assert not (run / LOCK).exists()


# the ends


def test_a_finished_run_says_so(whole: Path, tmp_path: Path) -> None:
    run, told = Path(shutil.copytree(whole, tmp_path / "run")), Told()
    before = last(run)
    assert again(run, reporter=told).summary == json.loads((run / "summary.json").read_text())
    assert told.notes[0].startswith("every epoch of the run in")
    assert same_bits(before, last(run))


def test_a_run_without_checkpoints_starts_or_is_refused(
    run: Path, whole: Path, tmp_path: Path
) -> None:
    shutil.rmtree(run / "checkpoints")  # killed before it saved anything
    told = Told()
    again(run, reporter=told)
    assert "starting at step 0" in told.notes[0]
    assert same_bits(last(run), last(whole))
    shutil.rmtree(run / "checkpoints")
    before = files(run)
    with pytest.raises(CheckpointError, match=r"has measured more than an epoch, and .* holds no"):
        again(run)
    assert files(run) == before


def test_a_lost_best_does_not_stop_a_run(whole: Path, tmp_path: Path) -> None:
    run, told = Path(shutil.copytree(whole, tmp_path / "run")), Told()
    checkpoints = run / "checkpoints"
    best = (checkpoints / "best").read_text().strip()
    if best == (checkpoints / "last").read_text().strip():
        pytest.skip("the last epoch was the best")
    (checkpoints / best).write_bytes(b"junk")
    done = again(run, reporter=told)
    assert "is lost" in told.notes[0]
    assert done.summary["best_epoch"] == done.summary["epochs"] == 2
