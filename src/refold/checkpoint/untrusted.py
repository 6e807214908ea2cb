"""The content of a `torch.save` or pickle file as data, whatever classes it names.

torch's own reader of weights stops at the first class that it does not know. Training scripts leave
many beside the weights: paths, dates, numbers of NumPy, configurations, and whole modules. Here
each becomes a `Thing`, and the tensors are read all the same.
"""

from __future__ import annotations

import copy
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from refold.checkpoint.formats import ARCHIVE
from refold.checkpoint.pickle_reader import Thing, read_pickle
from refold.checkpoint.rebuilding import Storage, rebuilders, stored_dtype

_MAGIC = 0x1950A86A20F9469CFC6C  # begins a file of torch before 1.6
_LENGTH = 8  # bytes of a storage's length in such a file


def read_untrusted(file: Path) -> object:
    """Return the content of a file; nothing that it names is looked up, imported or called.

    Raises:
        Exception: at junk, of many kinds.
    """
    with file.open("rb") as stream:
        if stream.read(len(ARCHIVE)) == ARCHIVE:
            return _read_archive(stream)
        stream.seek(0)
        return _read_stream(stream, file.stat().st_size)


def _read_archive(stream: BinaryIO) -> object:
    with zipfile.ZipFile(stream) as archive:
        names = archive.namelist()
        root = next(name for name in names if name.endswith("/data.pkl"))[: -len("data.pkl")]
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("the numbers are stored in another byte order")
        known: dict[str, Tensor] = {}

        def load(key: str, size: int) -> Tensor:
            if key not in known:
                data = archive.read(f"{root}data/{key}")
                known[key] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else _NONE
            if len(known[key]) < size:
                raise ValueError("a storage is longer than its member of the archive")
            return known[key]

        content = io.BytesIO(archive.read(f"{root}data.pkl"))
        return read_pickle(content, rebuilders(_read_inner), _references(load))


def require_storages(file: Path) -> None:
    """Refuse an archive in which a tensor is longer than what is stored of it.

    Raises:
        Exception: at junk, of many kinds.
    """
    with zipfile.ZipFile(file) as archive:
        pickle = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        root = pickle[: -len("data.pkl")]

        def load(key: str, size: int) -> Tensor:
            if archive.getinfo(f"{root}data/{key}").file_size < size:
                raise ValueError("a storage is longer than its member of the archive")
            return _NONE

        member = copy.copy(archive.getinfo(pickle))
        if not member.CRC:  # torch was told to compute no checksums
            del member.CRC
        with archive.open(member) as stream:
            read_pickle(io.BytesIO(stream.read()), {}, _references(load))


def _read_inner(stream: io.BytesIO) -> object:
    return _read_stream(stream, len(stream.getbuffer()))


def _read_stream(stream: BinaryIO, size: int) -> object:
    """Return the content of a plain pickle, or of a file of torch before 1.6."""
    allowed = [size]  # what storages may take in all: a file holds no more than it is long
    waiting: dict[str, Tensor] = {}

    def load(key: str, wanted: int) -> Tensor:
        if key not in waiting:
            allowed[0] -= wanted
            if allowed[0] < 0:
                raise ValueError("the storages are longer than the file")
            waiting[key] = torch.zeros(wanted, dtype=torch.uint8)
        if len(waiting[key]) < wanted:
            raise ValueError("a storage has two lengths")
        return waiting[key]

    def read() -> Any:
        return read_pickle(stream, rebuilders(_read_inner), _references(load))

    first = read()
    if first != _MAGIC:
        return first
    read()  # the protocol
    if read().get("little_endian") is not True:
        raise ValueError("the numbers are stored in another byte order")
    content = read()
    for key in read():
        _fill(waiting[key], stream)
    return content


def _fill(storage: Tensor, stream: BinaryIO) -> None:
    count = int.from_bytes(stream.read(_LENGTH), "little")
    if count > len(storage) or (count and len(storage) % count):
        raise ValueError("a storage has two lengths")
    data = stream.read(len(storage))
    if len(data) < len(storage):
        raise EOFError("the file ends within a storage")
    if data:
        storage.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))


_NONE = torch.empty(0, dtype=torch.uint8)


def _references(load: Callable[[str, int], Tensor]) -> Callable[[Any], Any]:
    """Return what makes storages of the references in a pickle of torch."""

    def persistent(reference: Any) -> Any:
        if not isinstance(reference, tuple) or not reference:
            return Thing("a reference", (reference,))
        if reference[0] == "module":  # with its source, in files of torch before 1.6
            return reference[1]
        label, kind, key, _, count, *view = reference
        if label != "storage" or type(count) is not int or count < 0 or (view and view[0]):
            raise ValueError("a reference is to no storage")
        if (dtype := stored_dtype(kind)) is None:  # such as quantized numbers
            return Thing(str(kind))
        return Storage(load(str(key), count * dtype.itemsize), dtype)

    return persistent
