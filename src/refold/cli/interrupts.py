"""Ctrl-C and the signals that end a process become an exception, so that unfinished work is undone.

A file that is being written is never left half-way: `refold.files` cleans up as the exception
passes. `refold train` hears signals in its own way while it runs.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

INTERRUPTED = 130  # the exit code after Ctrl-C
ECHO_SECONDS = 1.0  # a closed terminal sends SIGHUP twice, a hasty user presses Ctrl-C twice
AGAIN_SECONDS = 0.5  # libraries drop exceptions that they did not expect, as NumPy does


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to end."""


class Interrupts:
    """Hears SIGINT, SIGTERM and SIGHUP for a block; `received` is the first that came.

    A signal that this process was told to ignore (`nohup`) stays ignored. A second one within a
    second is taken for an echo: it would end the cleaning up that the first one began. Where the
    exception was dropped on its way, so that nothing is cleaned up, it is raised again.

    Examples:
        >>> with Interrupts() as interrupts:
        ...     try:
        ...         signal.raise_signal(signal.SIGTERM)
        ...     except KeyboardInterrupt:
        ...         print(interrupts.received == signal.SIGTERM)
        True
    """

    _NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # the last is unknown to Windows

    def __init__(self) -> None:
        self.received: int | None = None
        self._heard_at = -ECHO_SECONDS
        self._process = os.getpid()
        self._asking = False
        self._later: threading.Timer | None = None
        self._before: dict[int, Any] = {}
        self._hook = sys.unraisablehook

    @property
    def exit_code(self) -> int | None:
        """What a shell reports of a process that the signal ended; None without a signal."""
        return None if self.received is None else 128 + self.received

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name, None) for name in self._NAMES):
                if number is None or signal.getsignal(number) in (signal.SIG_IGN, None):
                    continue
                self._before[number] = signal.signal(number, self._hear)
            self._hook, sys.unraisablehook = sys.unraisablehook, self._hear_unraisable
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._forget()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if sys.unraisablehook == self._hear_unraisable:
            sys.unraisablehook = self._hook

    def _hear(self, number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != self._process:  # a forked worker ends as it would without us
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            return
        now = time.monotonic()
        asked, self._asking = self._asking, False
        if asked and _is_unwinding():
            self._ask_later(number)
            return
        if not asked and now - self._heard_at < ECHO_SECONDS:
            return
        self._heard_at = now
        self.received = self.received or number
        self._ask_later(number)
        raise Interrupted

    def _forget(self) -> None:
        later, self._later = self._later, None
        if later is not None:
            later.cancel()

    def _ask_later(self, number: int) -> None:
        """Send the signal again in a while, unless the block has ended by then."""
        self._forget()
        self._later = threading.Timer(AGAIN_SECONDS, self._ask, [number])
        self._later.daemon = True
        self._later.start()

    def _ask(self, number: int) -> None:
        if self._later is not None:
            self._asking = True
            _send(number)

    def _hear_unraisable(self, unraisable: Any, /) -> None:
        """Say nothing of an exception that came in a callback: it will be raised again."""
        if not isinstance(unraisable.exc_value, Interrupted):
            self._hook(unraisable)


def _is_unwinding() -> bool:
    """Say whether this thread is cleaning up after a signal."""
    error = sys.exception()
    while error is not None and not isinstance(error, Interrupted):
        error = error.__context__
    return error is not None


def _send(number: int) -> None:
    """Send a signal to the main thread, so that it wakes from whatever it waits for."""
    main = threading.main_thread().ident
    if main is not None and hasattr(signal, "pthread_kill"):
        signal.pthread_kill(main, number)
    else:
        signal.raise_signal(number)
