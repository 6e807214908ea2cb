"""The memory that a call takes at its peak."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_RESET_PEAK = "5"  # proc_pid_clear_refs(5)


def peak_mib(call: Callable[[], object], device: torch.device) -> float | None:
    """Return the MiB that a call takes at its peak beyond what is held before it.

    On a CUDA device it is what torch allocates there; else what Linux says of the process, pages
    that the allocator kept given back first. None where the system does not tell.

    Args:
        call: what is measured.
        device: where it runs.

    Examples:
        >>> held, big = [], lambda: torch.ones(16 * 2**20, dtype=torch.uint8)
        >>> peak = peak_mib(lambda: held.append(big()), torch.device("cpu"))
        >>> peak is None or peak > 15
        True
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:
        _give_back()
        _CLEAR.write_text(_RESET_PEAK)
        before = _held("VmRSS")
        call()
        return max(0.0, (_held("VmHWM") - before) / 2**10)
    except (OSError, ValueError, IndexError):
        return None


def _give_back() -> None:
    """Return free pages of glibc's heap to the system, where it is glibc's."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _held(name: str) -> int:
    """Return a row of the process's status, in KiB."""
    rows = [line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:")]
    return int(rows[0].split()[1])
