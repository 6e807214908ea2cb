"""Handle a request to stop between two steps, so that the saved state is consistent."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # the last is unknown to Windows
_HEARD = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """The run was asked to stop; it finished its step and saved.

    Args:
        number: the signal that asked.
    """

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.number = number


class Ears:
    """Listens for Ctrl-C, SIGTERM and SIGHUP.

    A second one stops at once. What this process was told to ignore (by `nohup`, or by a script
    that starts it in the background) stays ignored.

    Examples:
        >>> with Ears() as ears:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     ears.asked
        True
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether a signal was received."""
        return self.number is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _HEARD:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._hear)
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
        del frame
        if self.asked:
            raise KeyboardInterrupt
        self.number = number


def deafen(worker: int) -> None:
    """Make a loader's worker ignore signals: its parent handles them, and it ends with its parent.

    A terminal and a cluster's scheduler send them to all processes of a group.
    """
    del worker
    for number in _HEARD:
        signal.signal(number, signal.SIG_IGN)
