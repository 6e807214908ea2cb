"""Write files whole or not at all: a reader never sees half of one, and a failure leaves none.

A file is written in a hidden folder beside its place, the staging folder. `staged_paths` lists
those of this process that are open, and `discard_staged` removes them: it runs as Python exits, and
who handles a signal that ends the process calls it. What a killed process left is removed by the
next write to the same place.
"""

from __future__ import annotations

import atexit
import json
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
import time
import zlib
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from refold.errors import InputError, RefoldError

# What libraries that hide the OSError write into their own message when the disk is full.
_DISK_FULL = (
    "no space left",
    "file write failed",
    "unexpected pos",
    "iostream error",
    "file too large",
    "quota exceeded",
)
_STAGING = re.compile(r"\.refold-(?:(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-)?[a-z0-9_]{8}")
_HOST = f"{zlib.crc32(platform.node().encode()):08x}"
_ABANDONED = 24 * 3600  # seconds after which a staging folder of another machine has no writer
_open: dict[Path, int] = {}  # staging folders, with the process that writes there


@contextmanager
def atomic_path(path: str | os.PathLike[str], beside: Sequence[str] = ()) -> Generator[Path]:
    """Yield a path to write to; on success it becomes `path`, on failure nothing is left.

    The yielded path has the final name inside a hidden folder beside the target, so a writer may
    go by the suffix, and companion files (`model.bin`, `model.onnx.data`) move along with it:
    all or none, and one that an old file had and the new one has not is removed.
    A missing parent folder is made when its own parent exists; it is removed again on failure.
    A new file has the permissions that the process's umask gives, a replaced one keeps its own.

    Args:
        path: The file to create or replace. A link is followed: it stays, and what it points to
            is replaced.
        beside: Names of files that belong to this one, where it has such.

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
    sweep_staging(target.parent)  # before the write: what lies there may be what fills the disk
    staging = _name_staging(target)
    done = False
    try:
        staging.mkdir(mode=0o700)
        yield staging / target.name
        _publish(staging, target, beside)
        done = True
    except RefoldError:
        raise
    except Exception as error:
        reason = _write_failure(error)
        if reason is None:
            raise
        raise _unwritable(target, reason) from error
    finally:
        _discard(staging)
        if made_parent and not done:
            with suppress(OSError):  # somebody else has put something there
                target.parent.rmdir()


def staged_paths() -> tuple[Path, ...]:
    """Return the staging folders that this process has open: what a write not yet done holds."""
    return tuple(path for path, pid in list(_open.items()) if pid == os.getpid())


@atexit.register
def discard_staged() -> None:
    """Remove the staging folders of this process; the writes that use them fail."""
    for path in staged_paths():
        _discard(path)


def require_place(path: str | os.PathLike[str]) -> None:
    """Refuse a place where `atomic_path` could not write, before minutes of work go into it.

    Raises:
        InputError: When the name is too long, the folder is missing or cannot be written to, or
            something other than a file is there.
    """
    target = _resolve(path)
    folder = target.parent
    try:
        if not folder.is_dir():
            folder = _grandparent(target)  # one missing folder is made when the file is written
        tempfile.TemporaryFile(dir=folder).close()  # access bits do not know a read-only disk
    except OSError as error:
        raise InputError(
            f"{folder} is not writable ({_reason(error)}): choose another place for {target.name}"
        ) from error


def require_apart(
    path: str | os.PathLike[str],
    sources: Iterable[str | os.PathLike[str]],
    beside: Iterable[str] = (),
) -> None:
    """Refuse to write over what is read, whatever link or spelling names it.

    Args:
        path: The file to write.
        sources: The files that are read.
        beside: Names of files that belong to the one to write.

    Raises:
        InputError: When one of them is the same file.

    Examples:
        >>> require_apart("a.onnx", ["b.onnx"])
    """
    target = Path(os.path.realpath(path))
    places = [target, *(target.with_name(name) for name in beside)]
    for source in sources:
        for place in places:
            if _is_same(place, Path(source)):
                also = "" if place == target else f" and the {place.name} beside it"
                what = "the file" if Path(source) == Path(path) else str(source)
                raise InputError(
                    f"writing {path}{also} would replace {what} that is read: choose another name"
                )


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except (OSError, ValueError):  # one of them is not there
        return False


def is_text(path: str | os.PathLike[str]) -> bool:
    r"""Say whether a path is text: any bytes may be a name, and some libraries take text alone.

    Examples:
        >>> is_text("ö.onnx"), is_text(os.fsdecode(b"\xff.onnx"))
        (True, False)
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def is_file(path: str | os.PathLike[str]) -> bool:
    """Say whether there is such a file; there is none whose name is too long to be one."""
    try:
        return Path(path).is_file()
    except OSError:
        return False


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Say whether there is such a folder; there is none whose name is too long to be one."""
    try:
        return Path(path).is_dir()
    except OSError:
        return False


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write plain data as JSON, whole or not at all.

    Raises:
        InputError: When the place cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def require_named(what: str, path: object) -> None:
    """Refuse what is no path, and an empty text, which would stand for the current folder.

    Raises:
        InputError: if it is one.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"{what} must be a path, got {type(path).__name__}")
    if isinstance(path, str) and not path:
        raise InputError(f"{what} is an empty text: give a path")


def require_expanded(path: str | os.PathLike[str]) -> None:
    """Refuse a place that begins with `~`, which a shell would have taken for the home folder.

    Raises:
        InputError: where no file or folder has that name.
    """
    first = (*Path(path).parts, "")[0]
    if first.startswith("~") and not Path(first).exists():
        raise InputError(
            f"{path} begins with {first}, which only a shell takes for a home folder, and not "
            "within quotes or behind = : write the whole path"
        )


def _resolve(path: str | os.PathLike[str]) -> Path:
    """Return the file that is meant, which is a regular one or not there yet."""
    require_expanded(path)
    try:
        target = Path(os.path.realpath(path))
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        target, mode = Path(os.path.realpath(path)), stat.S_IFREG
    except (OSError, ValueError) as error:  # a name too long, a loop of links, a null byte
        reason = _reason(error) if isinstance(error, OSError) else str(error)
        raise _unwritable(Path(path), reason) from error
    if stat.S_ISDIR(mode):
        raise InputError(f"cannot write {path}: it is a folder; choose the name of a file")
    if not target.name or not stat.S_ISREG(mode):
        raise _unwritable(target, "it exists and is not a regular file")
    return target


def _make_parent(target: Path) -> bool:
    parent = target.parent
    if parent.is_dir():
        return False
    _grandparent(target)
    try:
        parent.mkdir()
    except OSError as error:
        raise _unwritable(target, _reason(error)) from error
    return True


def _grandparent(target: Path) -> Path:
    folder = target.parent.parent
    if not folder.is_dir():
        raise _unwritable(target, f"there is no folder {folder}")
    return folder


def _name_staging(target: Path) -> Path:
    """Note and return the path of a new staging folder.

    It is a sibling, so that os.replace stays on one file system and is atomic. It is noted before
    it is made, so that it is never there without being known.
    """
    name = f".refold-{_HOST}-{os.getpid()}-{secrets.token_hex(4)}"
    staging = target.with_name(name)
    _open[staging] = os.getpid()
    return staging


def _discard(staging: Path) -> None:
    shutil.rmtree(staging, ignore_errors=True)
    _open.pop(staging, None)


def sweep_staging(folder: Path) -> None:
    """Remove the staging folders that killed processes left in a folder."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _STAGING.fullmatch(entry.name) and _is_abandoned(entry):
                shutil.rmtree(entry.path, ignore_errors=True)


def _is_abandoned(entry: os.DirEntry[str]) -> bool:
    """Say whether a staging folder is abandoned: its process ended, or it is old."""
    found = _STAGING.fullmatch(entry.name)
    try:
        if found is None or not entry.is_dir(follow_symlinks=False):
            return False
        if found["host"] == _HOST and not _writes(Path(entry.path), int(found["pid"])):
            return True
        times = [entry.stat(follow_symlinks=False).st_mtime]
        times += [file.stat().st_mtime for file in Path(entry.path).iterdir()]
    except OSError:  # it went meanwhile, or is not ours to look into
        return False
    return time.time() - max(times) > _ABANDONED


def _writes(staging: Path, pid: int) -> bool:
    """Say whether a process of this machine may still be writing to a staging folder."""
    if pid == os.getpid():
        return staging in _open
    if os.name != "posix":  # where signal 0 would kill
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


def _publish(staging: Path, target: Path, beside: Sequence[str] = ()) -> None:
    written = sorted(staging.iterdir(), key=lambda file: file.name == target.name)
    if not written or written[-1].name != target.name:
        raise FileNotFoundError(f"the writer left no {target.name}")
    fresh = _fresh_mode(staging)
    for file in written:
        _sync(file)
        with suppress(PermissionError):  # of a file system that knows no permissions
            # A companion that is new is as private as the file that it belongs to.
            file.chmod(_mode_of(target.with_name(file.name), _mode_of(target, fresh)))
    stale = [target.with_name(name) for name in beside if name not in {f.name for f in written}]
    _replace([(file, target.with_name(file.name)) for file in written], stale, staging)
    _sync(target.parent)


def _replace(moves: list[tuple[Path, Path]], stale: list[Path], staging: Path) -> None:
    """Move files to their places, the named one last; put the old ones back if one cannot be."""
    if len(moves) == 1 and not any(path.exists() for path in stale):
        moves[0][0].replace(moves[0][1])
        return
    kept = staging / ".old"
    kept.mkdir()
    done: list[Path] = []
    places = [*stale, *(place for _, place in moves)]
    try:
        for place in places:
            if place.exists():
                _keep(place, kept / place.name)
        for file, place in moves:
            done.append(place)
            file.replace(place)
        for place in stale:
            done.append(place)
            place.unlink(missing_ok=True)
    except OSError:
        for place in places:
            if (kept / place.name).exists():
                (kept / place.name).replace(place)
            elif place in done:
                place.unlink(missing_ok=True)
        raise


def _keep(file: Path, place: Path) -> None:
    try:
        os.link(file, place)
    except OSError:  # a file system without links
        file.replace(place)


def _fresh_mode(folder: Path) -> int:
    """Return the permissions of a new file: some writers make theirs private."""
    probe = folder / ".mode"
    probe.touch(mode=0o666)
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    return mode


def _mode_of(path: Path, fresh: int) -> int:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return fresh


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_failure(error: BaseException | None) -> str | None:
    """Return why the file system refused, or None when the error is the writer's own."""
    while error is not None:  # closing a truncated file raises again
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
