"""Large results in files instead of in memory: the system writes them out where it needs room.

A network that is larger than the memory is folded so: each new weight is put into a file of its
own, mapped into memory, and only the one that is being computed takes room of the process.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Generator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refold.errors import InputError

LEAST = 1 << 20
"""Bytes of a tensor that is worth a file."""
_PIECE = 1 << 24  # bytes written at a time


class _FullError(BaseException):
    """No room for a result; not an `Exception`, which a fold would answer by leaving a step out."""


class _Store:
    """Files for large tensors in one folder; each is gone with its tensor."""

    def __init__(self, folder: Path, least: int) -> None:
        self._folder, self._least = folder, least
        self._count = 0
        self._held: set[int] = set()

    def holds(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._held

    def wants(self, numel: int, dtype: torch.dtype) -> bool:
        return numel * dtype.itemsize >= self._least

    def empty(self, shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a tensor in a file of its own."""
        size = shape.numel() * dtype.itemsize
        path = self._folder / f"{self._count}.bin"
        self._count += 1
        try:
            _reserve(path, size)
            storage: Any = torch.UntypedStorage.from_file(str(path), shared=True, nbytes=size)
        except (OSError, RuntimeError) as error:
            raise _FullError(error.strerror if isinstance(error, OSError) else error) from error
        with suppress(OSError):  # some systems keep the name of a file that is in use
            path.unlink()
        key = storage._cdata
        self._held.add(key)
        weakref.finalize(storage, self._held.discard, key)
        return torch.empty(0, dtype=dtype).set_(storage, 0, shape, stride)


def _reserve(path: Path, size: int) -> None:
    """Make a file of zeros: to write to mapped memory that no disk has room for ends a process."""
    with path.open("wb") as stream:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, size)
            return
        zeros = bytes(min(size, _PIECE))
        for start in range(0, size, _PIECE):
            stream.write(zeros[: size - start])


_store: ContextVar[_Store | None] = ContextVar("outside", default=None)


@contextmanager
def kept_outside(folder: Path, least: int = LEAST) -> Generator[None]:
    """Keep large results in files while the body runs.

    Args:
        folder: where; its files are there until their tensors are gone.
        least: bytes of a tensor that gets a file.

    Raises:
        InputError: when there is no room for one.
    """
    token = _store.set(_Store(folder, least))
    try:
        yield
    except _FullError as error:
        raise InputError(
            f"no room for the new weights in {folder.parent}: {str(error).lower()}; make room there"
        ) from error
    finally:
        _store.reset(token)


def keeps_outside() -> bool:
    """Say whether large results are kept in files now."""
    return _store.get() is not None


def _store_of(numel: int, like: Tensor) -> _Store | None:
    """Return where so many numbers of the type of `like` belong; None for memory."""
    store = _store.get()
    if store is None or like.device.type != "cpu" or not store.wants(numel, like.dtype):
        return None
    return store


def room_outside(shape: torch.Size, like: Tensor) -> Tensor | None:
    """Return an empty tensor in a file, of the type of `like`; None where it belongs in memory."""
    store = _store_of(shape.numel(), like)
    if store is None:
        return None
    return store.empty(shape, torch.empty(shape, device="meta").stride(), like.dtype)


def outside(tensor: Tensor) -> Tensor:
    """Return a new result where it belongs: as it is, or in a file.

    Examples:
        >>> import tempfile
        >>> result = torch.arange(3.0)
        >>> with tempfile.TemporaryDirectory() as name, kept_outside(Path(name), least=1):
        ...     kept = outside(result)
        >>> outside(result) is result, kept is result, kept
        (True, False, tensor([0., 1., 2.]))
    """
    store = _store_of(tensor.numel(), tensor)
    if store is None or store.holds(tensor):
        return tensor
    # Dense tensors keep their order in memory, such as channels last.
    stride = torch.empty_like(tensor, device="meta").stride()
    return store.empty(tensor.shape, stride, tensor.dtype).copy_(tensor.detach())
