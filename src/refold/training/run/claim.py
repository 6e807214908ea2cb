"""One process at a time trains in a folder: two would write over each other's checkpoints."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from refold.errors import InputError

try:
    import fcntl
except ImportError:  # on Windows, where nothing warns of a second process
    fcntl = None

LOCK = ".lock"


@contextmanager
def claim(run: Path) -> Generator[None]:
    """Have a run's folder, which is made where there is none, for this process alone.

    The lock is the operating system's: whatever way the process ends, it ends with it. The loader's
    workers, which may live a little longer, do not inherit it.

    Args:
        run: the folder.

    Raises:
        InputError: when another process has it, or it cannot be made.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        handle = _locked(run / LOCK)
    except OSError as error:
        raise InputError(f"{run} cannot be written to: {error.strerror}") from error
    try:
        yield
    finally:
        (run / LOCK).unlink(missing_ok=True)  # while it is still ours
        os.close(handle)


def _locked(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        try:
            _lock(path, handle)
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except FileNotFoundError:  # its owner removed it between the two lines: once more
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(path: Path, handle: int) -> None:
    if fcntl is None:
        return
    try:
        # Not `flock`, whose locks forked processes inherit.
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            owner = path.read_text(errors="replace").strip() or "another process"
            raise InputError(
                f"{path.parent} is in use by {owner}, which trains there: wait until it ends, or "
                "stop it, before you go on with --resume"
            ) from error
        return  # a file system without locks
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
