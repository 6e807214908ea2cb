"""Run a user's code in our process, and undo what it does to the process.

A factory's file is a script like any other. It may exit, print, change directory, parse
arguments, seed generators or set torch's defaults; none of that may reach what a command does
afterwards, and whatever it raises is one sentence that names the line.

Kept as the code leaves it: the environment, the recursion limit (a deep network needs it again) and
what it put on `sys.path` (a forward may import later), which moves behind everything else there.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import traceback
import warnings
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from refold.errors import InputError, one_line

PREFIX = "refold_user_"  # of the module that a user's file becomes
_PACKAGE = Path(__file__).resolve().parents[1]
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


@contextmanager
def hosted(complaint: str, script: Path | None = None) -> Generator[None]:
    """Run a user's code; raise one error for whatever it raises, and restore the process.

    Args:
        complaint: how the sentence begins that says what failed.
        script: the file that the code should take itself for when it reads `sys.argv`.

    Raises:
        InputError: for any exception but Ctrl-C, and for an attempt to exit.
    """
    with restored(script):
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise InputError(f"{complaint}{place_of(error)}: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """Return what a user's code raised, in one line.

    >>> describe(ValueError("no such size"))
    'ValueError: no such size'
    >>> describe(SystemExit(2))[:34]
    'it tried to exit (SystemExit: 2): '
    """
    if isinstance(error, SystemExit):
        return (
            f"it tried to exit (SystemExit: {error.code}): refold needs it to return, so "
            "exit only under if __name__ == '__main__'"
        )
    return f"{type(error).__name__}: {one_line(error)}"


def place_of(error: BaseException, *, unless_ours: bool = False) -> str:
    """Return ` (line 3 of net.py)`: the last line of a user's code before the error.

    Args:
        error: what was raised.
        unless_ours: return nothing where that line called us, so that the error is ours.
    """
    folders = list(_folders())
    if isinstance(error, SyntaxError) and error.filename and _is_inside(error.filename, folders):
        return f" (line {error.lineno} of {Path(error.filename).name})"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).is_relative_to(_PACKAGE):
            if unless_ours:
                return ""
        elif _is_inside(frame.filename, folders):
            return f" (line {frame.lineno} of {Path(frame.filename).name})"
    return ""


def _folders() -> Iterator[Path]:
    """Yield the folders of the files that were run: their neighbours are a user's code too."""
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None) if name.startswith(PREFIX) else None
        if path is not None:
            yield Path(path).parent


def _is_inside(filename: str, folders: list[Path]) -> bool:
    path = Path(filename)
    return "site-packages" not in path.parts and any(map(path.is_relative_to, folders))


@contextmanager
def restored(script: Path | None = None) -> Generator[None]:
    """Restore, after a block, what code can change for the whole process."""
    with ExitStack() as stack:
        for keep in (_place, _streams, _filters, _logging, _handlers, _torch, _chance):
            stack.enter_context(keep())
        stack.enter_context(_script(script))
        yield


@contextmanager
def _place() -> Generator[None]:
    folder: str | None = None
    with suppress(OSError):  # it may be gone
        folder = os.getcwd()  # noqa: PTH109 - as it is, links and all
    mask = os.umask(0)
    os.umask(mask)
    try:
        yield
    finally:
        os.umask(mask)
        if folder is not None:
            with suppress(OSError):
                os.chdir(folder)


@contextmanager
def _script(script: Path | None) -> Generator[None]:
    """Let code see itself as the running script, its folder first on the module path."""
    if script is None:
        yield
        return
    words, folders = sys.argv, list(sys.path)
    sys.argv = [str(script)]
    sys.path.insert(0, str(script.resolve().parent))
    try:
        yield
    finally:
        sys.argv = words
        sys.path[:] = [*folders, *(folder for folder in sys.path if folder not in folders)]


@contextmanager
def _streams() -> Generator[None]:
    with redirect_stdout(sys.stderr), redirect_stderr(sys.stderr):
        yield


@contextmanager
def _filters() -> Generator[None]:
    with warnings.catch_warnings():
        yield


@contextmanager
def _logging() -> Generator[None]:
    root = logging.root
    handlers, level, disabled = list(root.handlers), root.level, root.manager.disable
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.disable(disabled)


@contextmanager
def _handlers() -> Generator[None]:
    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None and signal.getsignal(number) is not handler:
                with suppress(ValueError):  # only the main thread may, and only it could
                    signal.signal(number, handler)


@contextmanager
def _torch() -> Generator[None]:
    import torch

    from refold.torch_versions import default_device, reset_default_device

    dtype, device = torch.get_default_dtype(), default_device()
    grad, threads = torch.is_grad_enabled(), torch.get_num_threads()
    precision = torch.get_float32_matmul_precision()
    strict = torch.are_deterministic_algorithms_enabled()
    lenient = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        if default_device() != device:
            is_plain = device == torch.device("cpu")
            reset_default_device() if is_plain else torch.set_default_device(device)
        torch.set_grad_enabled(grad)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        now = torch.are_deterministic_algorithms_enabled()
        if (now, torch.is_deterministic_algorithms_warn_only_enabled()) != (strict, lenient):
            torch.use_deterministic_algorithms(strict, warn_only=lenient)  # imports a compiler


@contextmanager
def _chance() -> Generator[None]:
    import torch

    numpy: Any = sys.modules.get("numpy")
    states = torch.get_rng_state(), random.getstate(), numpy and numpy.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        if numpy is not None:
            numpy.random.set_state(states[2])
