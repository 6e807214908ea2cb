"""Every state that a kill or a power cut can leave a run's checkpoints in is one to go on from.

Oracle: what lay in the folder before. The newest checkpoint that still reads as it was written is
found, and no whole one is removed before two newer ones are.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from refold.errors import CheckpointError, InputError, TrainingError
from refold.files import atomic_path
from refold.training.loop.run_folder import RunFolder
from refold.training.loop.saves import BEST, LAST, Saves
from refold.training.loop.snapshot import Snapshot, read_snapshot, write_snapshot

ENDS = (4, 8, 12)  # steps after which an epoch of four ended; the second epoch was the best


def snapshot(step: int, best: int | None) -> Snapshot:
    """Return the state of a run after a step: tensors of several kinds, and where it is."""
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "learner.network.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "ema.weight": torch.randn(5, generator=generator).to(torch.bfloat16),
        "learner.network.seen": torch.tensor(step),
        "optimizer.0.none": torch.zeros(0),
    }
    position = {"epoch": step // 4, "step": step % 4, "done": step, "best_epoch": best}
    return Snapshot(tensors, {"position": position})


def file_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:09}.safetensors"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run that was stopped after step 13: the best is 8, before 13 there is 12."""
    found = Saves(tmp_path)
    for step in (2, 4, 7, 8, 10, 12, 13):
        best = {4: 1, 7: 1}.get(step, 2 if step > 7 else None)
        found.write(snapshot(step, best), step, (LAST, BEST) if step in (4, 8) else (LAST,))
    assert steps_in(tmp_path) == [8, 12, 13]
    return tmp_path


def steps_in(run: Path) -> list[int]:
    return sorted(int(path.name[5:14]) for path in (run / "checkpoints").glob("step-*"))


def whole_in(run: Path) -> set[Path]:
    """Return the checkpoints that read as they were written."""
    found = set()
    for path in (run / "checkpoints").glob("step-*"):
        try:
            read_snapshot(path)
        except CheckpointError:
            continue
        found.add(path)
    return found


def pointer(run: Path, name: str, content: bytes | None) -> None:
    path = run / "checkpoints" / name
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)


NOBODY = "-99999999-"  # higher than any process number of the system


def half_written(run: Path, step: int) -> None:
    with atomic_path(file_of(run, step)) as temporary:
        temporary.write_bytes(b"half")
        staging = temporary.parent
        shutil.copytree(
            staging, staging.with_name(staging.name.replace(f"-{os.getpid()}-", NOBODY))
        )
    file_of(run, step).unlink()


def unnamed(run: Path, step: int) -> None:
    """Write a checkpoint to which no pointer leads yet."""
    write_snapshot(file_of(run, step), snapshot(step, 2))


def new_best(run: Path) -> None:
    """Leave `last` at the new best epoch, and `best` at the old one."""
    write_snapshot(file_of(run, 16), snapshot(16, 4))
    pointer(run, LAST, b"step-000000016.safetensors\n")


def cut(run: Path, step: int, length: float) -> None:
    path = file_of(run, step)
    os.truncate(path, int(length * path.stat().st_size))


def flip(run: Path, step: int, at: float) -> None:
    content = bytearray(file_of(run, step).read_bytes())
    content[int(at * (len(content) - 1))] ^= 0x40
    file_of(run, step).write_bytes(content)


def zero(run: Path, step: int) -> None:
    path = file_of(run, step)
    path.write_bytes(bytes(path.stat().st_size))


State = tuple[Callable[[Path], Any], int, int | None, str]
STATES: dict[str, State] = {
    "nothing": (lambda run: None, 13, 8, ""),
    "half a checkpoint": (lambda run: half_written(run, 15), 13, 8, ""),
    "half a pointer": (lambda run: half_written(run, 0), 13, 8, ""),
    "a checkpoint that last does not name yet": (
        lambda run: unnamed(run, 15), 15, 8, "names step-000000013.safetensors, but a newer"),
    "last names the new best, best the old one": (new_best, 16, 16, ""),
    "outdated checkpoints": (lambda run: [unnamed(run, step) for step in (3, 5)], 13, 8, ""),
    "no last": (lambda run: pointer(run, LAST, None), 13, 8, "last is missing"),
    "an empty last": (lambda run: pointer(run, LAST, b""), 13, 8, "last is damaged"),
    "a last of zeros": (lambda run: pointer(run, LAST, bytes(27)), 13, 8, "last is damaged"),
    "a last of noise": (lambda run: pointer(run, LAST, b"\xff\xfe"), 13, 8, "last is damaged"),
    "a last that leads elsewhere": (
        lambda run: pointer(run, LAST, b"../step-000000013.safetensors"), 13, 8, "last is damaged"),
    "a last that dangles": (
        lambda run: pointer(run, LAST, b"step-000000099.safetensors\n"), 13, 8, "which is not"),
    "the newest is gone": (lambda run: file_of(run, 13).unlink(), 12, 8, "13.safetensors, which"),
    "the newest has no bytes": (lambda run: cut(run, 13, 0), 12, 8, "13.safetensors is damaged"),
    "the newest is half": (lambda run: cut(run, 13, 0.5), 12, 8, "13.safetensors is damaged"),
    "the newest lacks its end": (lambda run: cut(run, 13, 0.999), 12, 8, "is damaged"),
    "the newest is zeros": (lambda run: zero(run, 13), 12, 8, "13.safetensors is damaged"),
    "the newest two are damaged": (
        lambda run: [flip(run, 12, 0.9), cut(run, 13, 0.3)], 8, 8, "12.safetensors is damaged"),
    "no best": (lambda run: pointer(run, BEST, None), 13, 8, ""),
    "a best of noise": (lambda run: pointer(run, BEST, b"\xff\x00"), 13, 8, ""),
    "a best that names another": (
        lambda run: pointer(run, BEST, b"step-000000012.safetensors"), 13, 8, ""),
    "the best is gone": (lambda run: file_of(run, 8).unlink(), 13, None, "best epoch, 2, is lost"),
    "the best is damaged": (lambda run: flip(run, 8, 0.99), 13, None, "best epoch, 2, is lost"),
    "files of somebody else": (
        lambda run: (run / "checkpoints" / "step-mine.safetensors").write_text("mine"), 13, 8, ""),
    "a clock that went back": (
        lambda run: [os.utime(file_of(run, s), (1e9 - s, 1e9 - s)) for s in (8, 13)], 13, 8, ""),
}  # fmt: skip


@pytest.mark.parametrize("state", STATES)
def test_a_run_goes_on_from_the_newest_whole_checkpoint(run: Path, state: str) -> None:
    damage, step, best, said = STATES[state]
    damage(run)
    whole = whole_in(run)
    saves = Saves(run)
    saves.sweep()
    found = saves.recover()
    assert (found.path, found.best) == (file_of(run, step), best and file_of(run, best))
    assert found.snapshot is not None
    wanted = snapshot(step, 0)
    assert found.snapshot.plain["position"]["done"] == step
    assert all(torch.equal(found.snapshot.tensors[n], wanted.tensors[n]) for n in wanted.tensors)
    assert said in " ".join(found.notes)
    assert bool(found.notes) == bool(said)
    assert whole_in(run) == whole  # finding out has changed nothing
    saves.mend(found)
    assert saves.named(LAST) == found.path
    assert saves.named(BEST) == found.best
    assert not list((run / "checkpoints").glob(".refold-*"))
    # It goes on: what it went on from stays until two newer ones are proved, the best in any case.
    best_one = {found.best} if found.best else set[Path]()
    # Where a disk or somebody's hand was at work, what was there stays altogether.
    spared = whole if said and "but a newer" not in said else set[Path]()
    epoch = best and best // 4
    saves.write(snapshot(20, epoch), 20)
    assert whole_in(run) == best_one | spared | {found.path, file_of(run, 20)}
    saves.write(snapshot(21, epoch), 21)
    assert whole_in(run) == best_one | spared | {file_of(run, 20), file_of(run, 21)}
    # The next time there is nothing to tell.
    assert Saves(run).recover().notes == ()


@pytest.mark.parametrize("seed", range(2))
def test_any_flipped_bit_is_noticed(run: Path, seed: int) -> None:
    path, generator = file_of(run, 13), torch.Generator().manual_seed(seed)
    content = path.read_bytes()
    before = read_snapshot(path)
    for at in torch.randint(len(content), (80,), generator=generator).tolist():
        flipped = bytearray(content)
        flipped[at] ^= 1 << int(torch.randint(8, (), generator=generator))
        path.write_bytes(flipped)
        try:
            found = read_snapshot(path)
        except CheckpointError:
            continue
        # A header's white space says nothing: then all is as it was.
        assert found.plain == before.plain
        assert found.tensors.keys() == before.tensors.keys()
        assert all(torch.equal(found.tensors[n], before.tensors[n]) for n in before.tensors)
        assert chr(content[at]).isspace()


def test_without_a_whole_checkpoint_nothing_is_begun_or_removed(run: Path) -> None:
    for step in (8, 12, 13):
        cut(run, step, 0.7)
    with pytest.raises(CheckpointError, match=r"all 3 checkpoints in .* are damaged"):
        Saves(run).recover()
    assert steps_in(run) == [8, 12, 13]
    for step in (8, 12, 13):
        file_of(run, step).unlink()
    with pytest.raises(CheckpointError, match=r"last names step-000000013.*there is no other"):
        Saves(run).recover()
    pointer(run, LAST, None)
    assert Saves(run).recover().snapshot is None


def test_a_pointer_is_read_or_refused(run: Path) -> None:
    assert Saves(run).read(BEST).plain["position"]["done"] == 8  # type: ignore[union-attr]
    pointer(run, LAST, None)
    with pytest.raises(
        CheckpointError, match=r"last is missing: --resume continues from the newest"
    ):
        Saves(run).read()
    pointer(run, LAST, b"\xff")
    with pytest.raises(CheckpointError, match="last is damaged"):
        Saves(run).read()
    (run / "checkpoints" / LAST).unlink()
    (run / "checkpoints" / LAST).mkdir()
    with pytest.raises(InputError, match="it is a folder"):
        Saves(run).mend(Saves(run).recover())


def test_a_checkpoint_that_does_not_read_back_replaces_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = safetensors.torch.save_file

    def broken(tensors: Any, path: Path, metadata: Any = None) -> None:
        write(tensors, path, metadata)
        with Path(path).open("r+b") as file:  # as a failing disk does
            file.seek(-3, os.SEEK_END)
            file.write(b"\x55\x55\x55")

    monkeypatch.setattr(safetensors.torch, "save_file", broken)
    for step in (13, 14):  # one that is there, and a new one
        with pytest.raises(
            TrainingError, match=r"reads back differently.*step-000000013.* is intact"
        ):
            Saves(run).write(snapshot(step, 2), step)
    assert steps_in(run) == [8, 12, 13]
    assert len(whole_in(run)) == 3


def test_the_best_of_the_checkpoint_before_is_kept(tmp_path: Path) -> None:
    """Should the newest, which is the best, be damaged, the one before still has its own best."""
    saves = Saves(tmp_path)
    for step, best in ((4, 1), (5, 1), (6, 1)):
        saves.write(snapshot(step, best), step, (LAST, BEST) if step == 4 else (LAST,))
    saves.write(snapshot(8, 2), 8, (LAST, BEST))
    assert steps_in(tmp_path) == [4, 6, 8]
    flip(tmp_path, 8, 0.9)
    found = Saves(tmp_path).recover()
    assert (found.path, found.best) == (file_of(tmp_path, 6), file_of(tmp_path, 4))


def test_a_checkpoint_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    tensors, path = {"a": torch.ones(3)}, file_of(tmp_path, 5)
    safetensors.torch.save_file(tensors, path, metadata={"refold": '{"n": 1}'})
    found = Saves(tmp_path).recover()
    assert found.snapshot is not None
    assert found.snapshot.plain == {"n": 1}


def test_measurements_that_were_cut_are_left_out(tmp_path: Path) -> None:
    lines = [f'{{"kind": "step", "step": {step}}}' for step in range(4)]
    text = "\n".join(
        [*lines, "7", '{"kind": "step"}', '{"kind": 3, "step": "x"}', '{"step": 2, "k']
    )
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(text.encode() + b"\xff\x00\x00")
    RunFolder(tmp_path).rewind(2)
    assert path.read_text().splitlines() == lines[:3]


@pytest.mark.parametrize("left", ["checkpoints/step-000000004.safetensors", "metrics.jsonl"])
def test_a_run_without_its_settings_is_not_begun_anew(tmp_path: Path, left: str) -> None:
    (tmp_path / left).parent.mkdir(exist_ok=True)
    (tmp_path / left).write_text("of a run")
    with pytest.raises(InputError, match=r"of a run whose settings \(config.yaml\) are missing"):
        RunFolder(tmp_path).require_new()
