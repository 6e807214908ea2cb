"""Run a fold in one thread, without garbage collection, apart from the modes of the caller."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_GIVEN: ContextVar[int | None] = ContextVar("_GIVEN", default=None)
_DEVICE: ContextVar[torch.device | None] = ContextVar("_DEVICE", default=None)


@contextmanager
def undisturbed() -> Generator[None]:
    """Compute in one thread and without the cyclic collector while a model is folded.

    A fold is thousands of short operations. Threads that share one wait for each other, on a busy
    machine a hundred times as long as they compute, and one walk of the collector through the
    whole process takes longer than the fold; what it would free is freed afterwards.
    """
    threads, collects = torch.get_num_threads(), gc.isenabled()
    outer = _GIVEN.set(_GIVEN.get() or threads)
    torch.set_num_threads(1)
    gc.disable()
    try:
        with outside_modes():
            yield
    finally:
        _GIVEN.reset(outer)
        torch.set_num_threads(threads)
        if collects:
            gc.enable()


@contextmanager
def outside_modes() -> Generator[None]:
    """Make tensors that can be trained, and on the CPU, whatever the caller's modes say.

    Examples:
        >>> with torch.inference_mode(), torch.device("meta"), outside_modes():
        ...     torch.zeros(1).is_inference(), torch.zeros(1).device.type
        (False, 'cpu')
    """
    with _on_cpu():
        if not torch.is_inference_mode_enabled():
            yield
            return
        with torch.inference_mode(False), torch.no_grad():
            yield


@contextmanager
def _on_cpu() -> Generator[None]:
    device = torch.get_default_device()
    if device.type == "cpu":  # each mode of torch costs something at every call
        yield
        return
    outer = _DEVICE.set(_DEVICE.get() or device)
    try:
        with torch.device("cpu"):
            yield
    finally:
        _DEVICE.reset(outer)


@contextmanager
def device_of_caller() -> Generator[None]:
    """Make tensors where the caller makes them: code of a model may rest on it.

    Examples:
        >>> with torch.device("meta"), outside_modes(), device_of_caller():
        ...     torch.zeros(1).device.type
        'meta'
    """
    device = _DEVICE.get()
    if device is None:
        yield
        return
    with torch.device(device):
        yield


@contextmanager
def threads_of_caller() -> Generator[None]:
    """Compute in as many threads as the caller had: a model's own forward is long operations.

    Examples:
        >>> before = torch.get_num_threads()
        >>> with undisturbed(), threads_of_caller():
        ...     torch.get_num_threads() == before
        True
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(_GIVEN.get() or threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
