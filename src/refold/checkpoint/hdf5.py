"""Read the flat dicts of arrays that ACNet's and DBB's repositories keep in HDF5 files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refold.errors import CheckpointError, MissingDependencyError

_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def is_hdf5(file: Path) -> bool:
    """Say whether a file begins as an HDF5 file does, whatever its name."""
    with file.open("rb") as stream:
        return stream.read(len(_SIGNATURE)) == _SIGNATURE


def read_hdf5(file: Path) -> dict[str, Tensor]:
    """Return every array of an HDF5 file; a `/` in its name counts as a dot.

    Raises:
        CheckpointError: when a dataset holds no numbers, or two have one name.
        MissingDependencyError: when h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingDependencyError(
            f"{file} is an HDF5 file, which needs h5py: run pip install 'refold[h5py]'"
        ) from error
    state: dict[str, Tensor] = {}

    def take(path: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        name = path.replace("/", ".")
        if item.dtype.kind not in "fiub" or item.shape is None or name in state:
            raise CheckpointError(
                f"dataset {path!r} of {file} is no array of numbers with a name of its own; "
                "a checkpoint holds one array a key"
            )
        values = torch.from_numpy(item[...].astype(item.dtype.newbyteorder("=")))
        state[name] = values

    with h5py.File(file, "r") as content:
        content.visititems(take)
    return state
