"""Memory for large results, made ready by a second core while the first one decides.

The memory of a result is new to the process, and the system clears a page when it is first
touched: for a large network that takes longer than the arithmetic. A thread touches it ahead.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from refold.engine.outside import keeps_outside, room_outside

_PAGE = 4096
_WORTH_IT = 1 << 25  # bytes: less is cleared about as fast as a thread starts


class _Store:
    """Tensors nobody uses yet; each belongs to the store, to the thread or to one result."""

    def __init__(self, like: Iterable[Tensor]) -> None:
        self._raw = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in like]
        self._ready: list[Tensor] = []
        self._touched: Tensor | None = None
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._touch_all, name="refold-memory", daemon=True)
        self._thread.start()

    def take(self, shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
        """Return a tensor of this kind: a touched one, another, or the one in work when done."""

        def fits(tensor: Tensor) -> bool:
            return tensor.shape == shape and tensor.dtype == dtype

        with self._change:
            while True:
                for store in (self._ready, self._raw):
                    for place, tensor in enumerate(store):
                        if fits(tensor):
                            return store.pop(place)
                if self._touched is None or not fits(self._touched):
                    return None
                self._change.wait()

    def close(self) -> None:
        """Give back what was not taken."""
        with self._change:
            self._raw.clear()
        self._thread.join()
        self._ready.clear()

    def _touch_all(self) -> None:
        while True:
            with self._change:
                if not self._raw:
                    return
                tensor = self._touched = self._raw.pop(0)
            tensor.view(-1)[:: _PAGE // tensor.element_size()].zero_()
            with self._change:
                self._touched = None
                self._ready.append(tensor)
                self._change.notify_all()


_store: ContextVar[_Store | None] = ContextVar("store", default=None)


@contextmanager
def made_ready(like: Iterable[Tensor]) -> Generator[None]:
    """Make memory for tensors like these ready while the body runs; `fresh` hands it out.

    Args:
        like: what results will probably look like, in the order they will be asked for.
    """
    wanted = [] if keeps_outside() else [t for t in like if t.device.type == "cpu"]
    if len(_cores()) < 2 or sum(t.numel() * t.element_size() for t in wanted) < _WORTH_IT:
        yield
        return
    store = _Store(wanted)
    token = _store.set(store)
    try:
        yield
    finally:
        _store.reset(token)
        store.close()


def fresh(shape: torch.Size, like: Tensor) -> Tensor:
    """Return an empty tensor of this shape, and of the type and device of `like`.

    Examples:
        >>> with made_ready([torch.zeros(1 << 24)]):
        ...     fresh(torch.Size([1 << 24]), torch.zeros(1)).shape
        torch.Size([16777216])
    """
    store = _store.get()
    found = None
    if store is not None and like.device.type == "cpu":
        found = store.take(shape, like.dtype)
    found = room_outside(shape, like) if found is None else found
    return torch.empty(shape, dtype=like.dtype, device=like.device) if found is None else found


def _cores() -> set[int]:
    """Return the processors that this process may use."""
    asked = getattr(os, "sched_getaffinity", None)
    return asked(0) if asked else set(range(os.cpu_count() or 1))
