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


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to end."""


class Interrupts:
    """Hears SIGINT, SIGTERM and SIGHUP for a block; `received` is the first that came.

    A signal that this process was told to ignore (`nohup`) stays ignored. A second one within a
    second is taken for an echo: it would end the cleaning up that the first one began.

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
        if now - self._heard_at < ECHO_SECONDS:
            return
        self._heard_at = now
        self.received = self.received or number
        raise Interrupted

    def _hear_unraisable(self, unraisable: Any, /) -> None:
        """Send a signal again that came where Python cannot raise: in a callback of an import."""
        if not isinstance(unraisable.exc_value, Interrupted) or self.received is None:
            self._hook(unraisable)
            return
        self._heard_at = -ECHO_SECONDS
        threading.Timer(0.01, _send, [self.received]).start()


def _send(number: int) -> None:
    """Send a signal to the main thread, so that it wakes from whatever it waits for."""
    main = threading.main_thread().ident
    if main is not None and hasattr(signal, "pthread_kill"):
        signal.pthread_kill(main, number)
    else:
        signal.raise_signal(number)
