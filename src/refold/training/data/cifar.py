"""CIFAR-10 and CIFAR-100 as their authors pack them, in binary or in Python's form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from refold.errors import InputError, MissingDependencyError
from refold.training.data.sources import PixelSource

SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32


class Found(NamedTuple):
    """Both parts, and the classes' names."""

    train: PixelSource
    val: PixelSource
    names: list[str]


class _Binary(NamedTuple):
    folder: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    names: str
    coarse: int  # bytes before the label


_BINARY = (
    _Binary(
        "cifar-10-batches-bin", tuple(f"data_batch_{part}.bin" for part in range(1, 6)),
        ("test_batch.bin",), "batches.meta.txt", 0,
    ),
    _Binary("cifar-100-binary", ("train.bin",), ("test.bin",), "fine_label_names.txt", 1),
)  # fmt: skip
_PYTHON = {"cifar-10-batches-py": "CIFAR10", "cifar-100-python": "CIFAR100"}


def cifar(folder: Path) -> Found | None:
    """Return CIFAR's two parts when a folder is, or holds, one of its folders; else None.

    Raises:
        InputError: when a file is missing or damaged.
    """
    for layout in _BINARY:
        for place in (folder / layout.folder, folder):
            if (place / layout.val[0]).is_file() and (place / layout.names).is_file():
                return _read_binary(place, layout)
    for name, kind in _PYTHON.items():
        if (folder / name).is_dir() or folder.name == name:
            return _read_python(folder.parent if folder.name == name else folder, kind)
    return None


def _read_binary(folder: Path, layout: _Binary) -> Found:
    names = (folder / layout.names).read_text().split()
    train = _records(folder, layout.train, layout.coarse, len(names))
    val = _records(folder, layout.val, layout.coarse, len(names))
    return Found(train, val, names)


def _records(folder: Path, files: Sequence[str], coarse: int, classes: int) -> PixelSource:
    pixels: list[Tensor] = []
    labels: list[int] = []
    size = coarse + 1 + _PIXELS
    for name in files:
        path = folder / name
        if not path.is_file():
            raise InputError(f"there is no file {path}, a part of CIFAR")
        content = bytearray(path.read_bytes())
        if not content or len(content) % size:
            raise InputError(
                f"{path} is damaged: {len(content)} bytes are not a whole number of records of "
                f"{size} bytes"
            )
        records = torch.frombuffer(content, dtype=torch.uint8).view(-1, size)
        numbers: list[int] = records[:, coarse].tolist()
        if max(numbers) >= classes:
            raise InputError(f"{path} is damaged: label {max(numbers)} of {classes} classes")
        pixels.append(records[:, coarse + 1 :].reshape(-1, *SHAPE))  # (N, 3, 32, 32)
        labels += numbers
    return PixelSource(torch.cat(pixels), labels, str(folder / files[0]))


def _read_python(folder: Path, kind: str) -> Found:
    """Read the pickled form through torchvision, which checks each file's digest before."""
    try:
        from torchvision import datasets
    except ImportError as error:
        raise MissingDependencyError(
            "CIFAR's Python form needs torchvision: run pip install 'refold[models]'"
        ) from error
    parts: list[PixelSource] = []
    names: list[str] = []
    for train in (True, False):
        try:
            part: Any = getattr(datasets, kind)(folder, train=train, download=False)
        except Exception as error:
            raise InputError(
                f"{folder}: the files of {kind} are incomplete or damaged ({error}); unpack them "
                "again, or use the binary form"
            ) from error
        pixels = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()  # (N, 3, 32, 32)
        parts.append(PixelSource(pixels, part.targets, f"{kind} in {folder}"))
        names = list(part.classes)
    return Found(parts[0], parts[1], names)
