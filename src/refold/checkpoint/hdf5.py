"""Read the flat dicts of arrays that ACNet's and DBB's repositories keep in HDF5 files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refold.checkpoint.formats import require_size
from refold.errors import CheckpointError, MissingDependencyError

_WIDEST = 8  # bytes of a number; torch has none of 16


def read_hdf5(file: Path) -> dict[str, Tensor]:
    """Return every array of an HDF5 file; a `/` in its name counts as a dot.

    Raises:
        CheckpointError: when a dataset holds no numbers or lies outside the file, two have one
            name, or the file holds links.
        MissingDependencyError: when h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingDependencyError(
            f"{file} is an HDF5 file, which needs h5py: run pip install 'refold[h5py]'"
        ) from error
    found: dict[str, Any] = {}
    with h5py.File(file, "r") as content:
        for path, dataset in _datasets(content, file):
            name = path.replace("/", ".")
            _require_plain(path, dataset, file)
            if name in found:
                raise CheckpointError(
                    f"two datasets of {file} are called {name!r}; a checkpoint holds one array "
                    "per key"
                )
            found[name] = dataset
        require_size(file, sum(map(_memory, found.values())))
        return {name: _tensor(dataset) for name, dataset in found.items()}


def _datasets(content: Any, file: Path) -> Iterator[tuple[str, Any]]:
    """Yield what lies in a file by its path, groups walked through, in the file's order.

    A link would name another file of this machine, or a group that it lies in.
    """
    import h5py

    waiting: list[tuple[str, Any]] = [("", content)]
    seen = {_address(content)}
    while waiting:
        place, group = waiting.pop()
        inner: list[tuple[str, Any]] = []
        for key in group:
            path = f"{place}{key}"
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise CheckpointError(
                    f"{path!r} of {file} is a link; a checkpoint holds its arrays itself: copy "
                    "what it points to into the file"
                )
            item = group[key]
            if isinstance(item, h5py.Dataset):
                yield path, item
            elif isinstance(item, h5py.Group):
                if _address(item) in seen:
                    raise CheckpointError(
                        f"{path!r} of {file} is a group that appears twice, or contains "
                        "itself; save the weights once"
                    )
                seen.add(_address(item))
                inner.append((f"{path}/", item))
        waiting.extend(reversed(inner))


def _address(item: Any) -> int:
    import h5py

    library: Any = h5py  # whose stub lacks the low-level modules
    return int(library.h5o.get_info(item.id).addr)


def _require_plain(path: str, dataset: Any, file: Path) -> None:
    dtype = dataset.dtype
    if dataset.is_virtual or dataset.external:
        raise CheckpointError(
            f"dataset {path!r} of {file} lies in another file; a checkpoint holds its arrays "
            "itself, and no other file is read"
        )
    stored = dataset.id.get_storage_size()
    if dtype.kind not in "fiub" or dtype.itemsize > _WIDEST or dataset.shape is None:
        raise CheckpointError(
            f"dataset {path!r} of {file} holds {dtype}, not an array of numbers that torch "
            "has; a checkpoint holds one such array per key"
        )
    if dataset.size and not stored:
        raise CheckpointError(
            f"dataset {path!r} of {file} has a shape, but its values were never written; save the "
            "weights again"
        )


def _memory(dataset: Any) -> int:
    """Return the bytes that reading takes: of the array, and of a chunk of it as it is stored."""
    chunk = math.prod(dataset.chunks or ())
    return max(math.prod(dataset.shape), chunk) * int(dataset.dtype.itemsize)


def _tensor(dataset: Any) -> Tensor:
    return torch.from_numpy(dataset[...].astype(dataset.dtype.newbyteorder("=")))
