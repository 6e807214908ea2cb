"""One process at a time trains in a folder: two would overwrite each other's checkpoints."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from refold.errors import InputError

try:
    import fcntl
except ImportError:  # on Windows, where nothing warns of a second process
    fcntl = None

LOCK = ".lock"


@contextmanager
def claim(run: Path) -> Generator[None]:
    """Lock a run's folder for this process, creating it if it does not exist.

    The lock is the operating system's: it ends with the process, however that ends. The loader's
    workers, which may live a little longer, do not inherit it.

    Args:
        run: the folder.

    Raises:
        InputError: when another process holds it, or it cannot be created.
    """
    with _explaining(run):
        run.mkdir(parents=True, exist_ok=True)
        handle = _locked(run / LOCK)
    try:
        yield
    finally:
        (run / LOCK).unlink(missing_ok=True)  # while it is still ours
        os.close(handle)


def require_unclaimed(run: Path) -> None:
    """Refuse a folder that another process trains in, before it is asked what it holds.

    Raises:
        InputError: when one does.
    """
    with _explaining(run), suppress(FileNotFoundError, NotADirectoryError):
        handle = os.open(run / LOCK, os.O_RDWR)
        try:
            _lock(run / LOCK, handle, shared=True)  # many may ask at once, as under torchrun
        finally:
            os.close(handle)


@contextmanager
def _explaining(run: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise InputError(f"{run} cannot be written to ({why}): choose another folder") from error


def _locked(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        try:
            _lock(path, handle)
            if os.path.samestat(os.fstat(handle), path.stat()):
                os.ftruncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                return handle
        except FileNotFoundError:  # its owner removed it between the two lines: try again
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(path: Path, handle: int, *, shared: bool = False) -> None:
    if fcntl is None:
        return
    try:
        # Not `flock`, whose locks forked processes inherit.
        fcntl.lockf(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            owner = path.read_text(errors="replace").strip() or "another process"
            raise InputError(
                f"{path.parent} is in use by {owner}, which trains there: wait until it ends, or "
                "stop it, then pass --resume to continue"
            ) from error
        # else it is a file system without locks
