"""What must be set up before anything else is imported, when this process is the command line.

`refold/__init__.py` imports this file first. It imports nothing that takes time, and does nothing
where refold is a library.

- Ctrl-C ends the process at once and without a traceback while torch is imported; there is nothing
  to clean up yet. `refold.cli.interrupts` takes over from there.
- A standard stream that the caller closed is `/dev/null`: otherwise the next file that anyone opens
  would get its number, and with it whatever is printed.
- Help is printed at once, before torch is imported.
- Standard output holds results alone, on a descriptor of its own. Number 1 is standard error from
  here on, so whatever a network or a library prints, in Python or in C, cannot end up among them.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import PurePath
from types import FrameType
from typing import TextIO, cast

from refold.cli.interrupts import INTERRUPTED


def starts_here(words: list[str], script: list[str]) -> bool:
    """Say whether a process is `refold` or `python -m refold`.

    Args:
        words: the command as the system got it: the interpreter, its options, the script, the rest.
        script: the script and the rest, as `sys.argv` has them.

    Examples:
        >>> starts_here(["python", "-m", "refold", "models"], ["-m", "models"])
        True
        >>> starts_here(["python", "-Xdev", "/usr/bin/refold", "models"], ["refold", "models"])
        True
        >>> starts_here(["python", "-m", "pytest", "refold"], ["pytest.py", "refold"])
        False
    """
    at = len(words) - len(script)
    return at > 0 and bool(script) and PurePath(words[at]).stem == "refold"


def _leave(number: int, frame: FrameType | None) -> None:
    del number, frame
    os._exit(INTERRUPTED)


def _fill_closed() -> None:
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one
    sys.stdin = sys.stdin or _open_null("r")
    sys.stdout = sys.stdout or _open_null("w")
    sys.stderr = sys.stderr or _open_null("w")


def _open_null(mode: str) -> TextIO:
    return cast("TextIO", open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123


def _set_results_apart() -> None:
    before = sys.stdout
    results = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = open(  # noqa: SIM115, PTH123
        results, "w", encoding=before.encoding, errors="backslashreplace"
    )


if starts_here(sys.orig_argv, sys.argv):
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    _fill_closed()
    _set_results_apart()
    if "--help" in sys.argv or len(sys.argv) == 1:
        from refold.cli.app import main

        sys.exit(main())
