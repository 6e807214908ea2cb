"""The checkpoints of a run: complete or absent, never removed before newer ones are verified.

A checkpoint is one safetensors file, tensors and plain numbers alike. It is written under a hidden
name and read back, then it gets its own name, and only then the pointer `last` (or `best`) is
replaced by one that names it. Whatever moment a process is killed at, whole files are there; which
is the newest of them the files say themselves, so a run can be resumed without its pointers.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from refold.errors import CheckpointError, InputError, TrainingError
from refold.files import atomic_path, sweep_staging
from refold.sources.runs import BEST as BEST
from refold.sources.runs import CHECKPOINTS
from refold.sources.runs import LAST as LAST
from refold.training.loop.snapshot import Snapshot, read_snapshot, write_snapshot

_NAME = re.compile(r"step-(\d{9,})\.safetensors")
_KEPT = 2  # the newest, and the one before should it turn out to be damaged
_SPARE = 2**20  # bytes that are left free beside a checkpoint


class _Whole(NamedTuple):
    """A checkpoint that this process has read back, and the best one when it was written."""

    path: Path
    best: Path | None


@dataclass(frozen=True)
class Recovered:
    """Where a run continues.

    Args:
        snapshot: the newest whole one; None when the run has none yet.
        path: its file.
        best: the file of the best one; None when it is lost, or nothing was judged yet.
        notes: a sentence for each thing that is not as it should be.
    """

    snapshot: Snapshot | None = None
    path: Path | None = None
    best: Path | None = None
    notes: tuple[str, ...] = ()


class Saves:
    """The checkpoints of a run.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: Path) -> None:
        self.folder = run / CHECKPOINTS
        self._whole: list[_Whole] = []
        self._spared: frozenset[Path] = frozenset()

    def write(self, snapshot: Snapshot, step: int, pointers: tuple[str, ...] = (LAST,)) -> Path:
        """Write a checkpoint, read it back, make pointers name it, and remove what is outdated.

        Args:
            snapshot: what to write.
            step: names the file.
            pointers: `LAST`, `BEST` or both.

        Raises:
            TrainingError: when the disk is full; earlier checkpoints are kept.
        """
        path = self.folder / f"step-{step:09}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._require_room(snapshot.tensors)
            with atomic_path(path) as temporary:
                write_snapshot(temporary, snapshot)
            for pointer in pointers:
                self._point(pointer, path.name)
        except (InputError, OSError) as error:
            raise TrainingError(
                f"the checkpoint of step {step} could not be written ({error}); "
                f"{self.standing()}; make room and pass --resume to continue"
            ) from error
        best = self._whole[-1].best if self._whole else self.named(BEST)
        self._whole.append(_Whole(path, path if BEST in pointers else best))
        self._tidy()
        return path

    def read(self, pointer: str = LAST) -> Snapshot | None:
        """Return the checkpoint that a pointer names; None when the run has none yet.

        Raises:
            CheckpointError: when the pointer or the file is missing or damaged.
        """
        place = self.folder / pointer
        path = self.named(pointer)
        if path is None:
            if not place.exists() and (pointer != LAST or not self._files()):
                return None
            raise CheckpointError(f"{place} {_fault(place)}: {_MENDS}")
        try:
            return read_snapshot(path)
        except CheckpointError as error:
            raise CheckpointError(
                f"{path}, which {place} names, is damaged: {error}; {_MENDS}"
            ) from error

    def named(self, pointer: str) -> Path | None:
        """Return the file that a pointer names; None when it is missing or names no checkpoint."""
        try:
            name = (self.folder / pointer).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None
        return self.folder / name if _NAME.fullmatch(name) else None

    def began(self) -> bool:
        """Say whether there is a checkpoint, whole or not."""
        return bool(self._files())

    def standing(self) -> str:
        """Say which checkpoint the run can continue from."""
        last = self.named(LAST)
        return f"{last} is intact" if last else "there is none yet"

    # -- after a kill -----------------------------------------------------------------------------

    def recover(self) -> Recovered:
        """Return the newest whole checkpoint, and what is not as it should be; change no file.

        Where something is not, all files that are there now are left alone from now on.

        Raises:
            CheckpointError: when there were checkpoints and all are damaged.
        """
        files = self._files()
        damaged: list[tuple[Path, str]] = []
        for path in files:
            try:
                snapshot = read_snapshot(path)
            except CheckpointError as error:
                damaged.append((path, str(error)))
                continue
            return self._recovered(files, damaged, path, snapshot)
        if damaged:
            listed = "; ".join(f"{path.name}: {reason}" for path, reason in damaged[:3])
            raise CheckpointError(
                f"all {len(damaged)} checkpoints in {self.folder} are damaged ({listed}): restore "
                "one from a copy, or start over in another folder"
            )
        place = self.folder / LAST
        if place.exists():
            raise CheckpointError(
                f"{place} {_fault(place)}, and there is no other checkpoint: restore one from a "
                "copy, or start over in another folder"
            )
        return Recovered()

    def mend(self, recovered: Recovered) -> None:
        """Make the pointers name the checkpoint that a run continues from.

        Raises:
            InputError: when something else is in a pointer's place.
        """
        for pointer, path in ((LAST, recovered.path), (BEST, recovered.best)):
            if path is not None and self.named(pointer) != path:
                self._point(pointer, path.name)
        if recovered.best is None:
            try:
                (self.folder / BEST).unlink(missing_ok=True)
            except OSError as error:
                raise CheckpointError(f"{self.folder / BEST} is in the way: {error}") from error

    def sweep(self) -> None:
        """Remove what a killed process left half-written."""
        sweep_staging(self.folder)

    def _recovered(
        self, files: Sequence[Path], damaged: list[tuple[Path, str]], path: Path, snapshot: Snapshot
    ) -> Recovered:
        notes = [f"{file} is damaged ({reason})" for file, reason in damaged]
        last = self.named(LAST)
        place = self.folder / LAST
        odd = bool(damaged) or last not in files
        if last is None or last not in files:
            notes.append(f"{place} {_fault(place)}")
        elif last != path and not damaged:
            notes.append(f"{place} names {last.name}, but a newer checkpoint is intact")
        best, lost = self._best(files, path, snapshot)
        if lost:
            notes.append(
                f"the checkpoint of the best epoch, {snapshot.best_epoch}, is lost: the best is "
                "chosen from the epochs to come"
            )
        if notes:
            notes.append(f"continues from {path}, the newest intact checkpoint")
        self._whole = [_Whole(path, best)]
        self._spared = frozenset(files if odd or lost else ())
        return Recovered(snapshot, path, best, tuple(notes))

    def _best(
        self, files: Sequence[Path], path: Path, snapshot: Snapshot
    ) -> tuple[Path | None, bool]:
        """Return the file of the best epoch that a snapshot knows of, and whether it is lost."""
        epoch = snapshot.best_epoch
        if epoch is None:
            return None, False
        named = self.named(BEST)
        for file in sorted(files, key=lambda file: file != named):  # the one that is named first
            with contextlib.suppress(CheckpointError):
                if (snapshot if file == path else read_snapshot(file)).ends(epoch):
                    return file, False
        return None, True

    # -- files ------------------------------------------------------------------------------------

    def _files(self) -> list[Path]:
        """Return the checkpoints by their names, the newest first, whole or not."""
        found = [path for path in self.folder.glob("step-*") if _NAME.fullmatch(path.name)]
        return sorted((path for path in found if path.is_file()), key=_step, reverse=True)

    def _point(self, pointer: str, name: str) -> None:
        with atomic_path(self.folder / pointer) as temporary:
            temporary.write_text(name + "\n")

    def _tidy(self) -> None:
        """Remove what is older than the newest two, of which this process has read back both."""
        self._whole = self._whole[-_KEPT:]
        if len(self._whole) < _KEPT:
            return
        kept = {self.named(BEST), *(path for whole in self._whole for path in whole), *self._spared}
        oldest = min(_step(whole.path) for whole in self._whole)
        for path in self._files():
            if _step(path) < oldest and path not in kept:
                with contextlib.suppress(OSError):  # one file too many harms nobody
                    path.unlink()

    def _require_room(self, tensors: Mapping[str, Tensor]) -> None:
        need = sum(value.numel() * value.element_size() for value in tensors.values()) + _SPARE
        free = shutil.disk_usage(self.folder).free
        if free < need:
            raise InputError(
                f"it needs {need / 2**20:.1f} MiB, and {self.folder} has {free / 2**20:.1f} free"
            )


_MENDS = "--resume continues from the newest intact checkpoint"


def _step(path: Path) -> int:
    found = _NAME.fullmatch(path.name)
    return int(found[1]) if found else -1


def _fault(place: Path) -> str:
    """Return what is wrong with a pointer that leads nowhere."""
    if not place.exists():
        return "is missing"
    try:
        text = place.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return "is damaged"
    return f"names {text}, which is not there" if _NAME.fullmatch(text) else "is damaged"
