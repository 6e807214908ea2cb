"""Write files whole or not at all: a reader never sees half of one, and a failure leaves none."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError, RefoldError

_STAGING = ".refold-"

# What libraries that hide the OSError write into their own message when the disk is full.
_DISK_FULL = (
    "no space left",
    "file write failed",
    "unexpected pos",
    "iostream error",
    "file too large",
    "quota exceeded",
)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Generator[Path]:
    """Yield a path to write to; on success it becomes `path`, on failure nothing is left.

    The yielded path has the final name inside a hidden folder beside the target, so a writer may
    go by the suffix, and companion files (`model.bin`, `model.onnx.data`) move along with it.
    A missing parent folder is made when its own parent exists; it is removed again on failure.

    Args:
        path: The file to create or replace. A link is followed.

    Raises:
        InputError: When the place cannot be written: no such folder, not a regular file, no
            permission, disk full. Errors of the writer itself pass through.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> with atomic_path(Path(folder.name) / "note.txt") as temporary:
        ...     _ = temporary.write_text("whole")
        >>> (Path(folder.name) / "note.txt").read_text()
        'whole'
        >>> folder.cleanup()
    """
    target = _resolve(path)
    made_parent = _make_parent(target)
    staging: Path | None = None
    done = False
    try:
        staging = _make_staging(target)
        yield staging / target.name
        _publish(staging, target)
        done = True
    except RefoldError:
        raise
    except Exception as error:
        reason = _write_failure(error)
        if reason is None:
            raise
        raise _unwritable(target, reason) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        if made_parent and not done:
            target.parent.rmdir()


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write plain data as JSON, whole or not at all.

    Raises:
        InputError: When the place cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def sweep_staging(folder: Path) -> None:
    """Remove what `atomic_path` left in a folder when its process was killed.

    Nobody may be writing into the folder meanwhile.
    """
    for path in folder.glob(f"{_STAGING}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def _resolve(path: str | os.PathLike[str]) -> Path:
    try:
        target = Path(os.path.realpath(path))
        is_regular = not target.exists() or target.is_file()
    except (OSError, ValueError) as error:  # a name too long, a null byte
        raise _unwritable(Path(path), str(error)) from error
    if not target.name or not is_regular:
        raise _unwritable(target, "it exists and is not a regular file")
    return target


def _make_parent(target: Path) -> bool:
    parent = target.parent
    if parent.is_dir():
        return False
    if not parent.parent.is_dir():
        raise _unwritable(target, f"there is no folder {parent.parent}")
    try:
        parent.mkdir()
    except OSError as error:
        raise _unwritable(target, _reason(error)) from error
    return True


def _make_staging(target: Path) -> Path:
    # A sibling, so that os.replace stays on one file system and is atomic.
    return Path(tempfile.mkdtemp(prefix=_STAGING, dir=target.parent))


def _publish(staging: Path, target: Path) -> None:
    written = sorted(staging.iterdir(), key=lambda file: file.name == target.name)
    if not written or written[-1].name != target.name:
        raise FileNotFoundError(f"the writer left no {target.name}")
    for file in written:  # companions first: the named file never points at what is not there yet
        _sync(file)
    for file in written:
        file.replace(target.with_name(file.name))
    _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_failure(error: BaseException | None) -> str | None:
    """Return why the file system refused, or None when the error is the writer's own."""
    while error is not None:  # closing a file that is cut short raises once more
        if isinstance(error, OSError):
            return _reason(error)
        if any(sign in str(error).lower() for sign in _DISK_FULL):
            return "no space left on the disk"
        error = error.__context__
    return None


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _unwritable(target: Path, reason: str) -> InputError:
    return InputError(f"cannot write {target}: {reason}; choose a path that can be written")
