"""A request to stop is heard between two steps, so that what is saved is whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class Stopped(KeyboardInterrupt):
    """The run was asked to stop; it has finished its step and saved."""


class Ears:
    """Hears Ctrl-C and the signal to terminate; a second one stops at once.

    Examples:
        >>> with Ears() as ears:
        ...     signal.raise_signal(signal.SIGINT)
        ...     ears.asked
        True
    """

    _HEARD = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in self._HEARD}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def deafen(worker: int) -> None:
    """Let a loader's worker leave signals to the process that it reads for, and ends with.

    A terminal and a cluster's scheduler send them to all processes of a group.
    """
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
