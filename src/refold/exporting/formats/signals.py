"""OpenVINO gives the calling thread a stack for signals that is too small, and leaves it there.

The next signal that Python handles (Ctrl-C, the end of a loader's worker) then ends the process
with a segmentation fault.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import ClassVar


class _Stack(ctypes.Structure):
    _fields_: ClassVar = [
        ("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)
    ]  # fmt: skip


@contextmanager
def own_signal_stack() -> Generator[None]:
    """Give the thread back the signal stack that it had; does nothing but on Linux."""
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), _Stack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)
