"""Get the tensors out of a checkpoint file, and nothing else: no code in it is ever run."""

from __future__ import annotations

import argparse
import os
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from operator import ne
from pathlib import Path
from typing import NamedTuple, cast

import safetensors.torch
import torch
from torch import Tensor

from refold.checkpoint.hdf5 import is_hdf5, read_hdf5
from refold.errors import CheckpointError, RefoldError

# Where training scripts keep the weights inside a checkpoint; averaged ones are the better ones.
_AVERAGED = ("ema", "ema_state_dict", "state_dict_ema", "model_ema")
_CONTAINERS = (*_AVERAGED, "state_dict", "model_state_dict", "model", "module")
_SHOWN = 10
OPTIONAL = "num_batches_tracked"
"""Unused in eval mode and absent from old files."""


class Contents(NamedTuple):
    """The tensors of a file by name, what they lay in and what their names were freed of."""

    state: dict[str, Tensor]
    unwrapped: tuple[str, ...]
    stripped: tuple[str, ...]


def read_contents(path: str | os.PathLike[str]) -> Contents:
    """Return the tensors of a checkpoint file, unwrapped and without wrapper prefixes.

    Raises:
        CheckpointError: When the file is missing, damaged, unsafe or holds anything else.
    """
    file = Path(path)
    raw, unwrapped = _unwrap(_read(file), file)
    names, stripped = strip(raw)
    return Contents({name: raw[key] for name, key in names.items()}, unwrapped, stripped)


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the finite tensors of a checkpoint file, unwrapped and without wrapper prefixes.

    Raises:
        CheckpointError: When the file is missing, damaged, unsafe or holds anything else.
    """
    state = read_contents(path).state
    require_finite(state, Path(path))
    return state


def _read(file: Path) -> object:
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise CheckpointError(f"checkpoint {file} {what}; give a .pth or .safetensors file")
    try:
        if file.suffix.lower() == ".safetensors":
            return safetensors.torch.load(file.read_bytes())
        if is_hdf5(file):
            return read_hdf5(file)
        # Training scripts store their parsed arguments beside the weights: plain data in a class.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # torch remarks on pickle protocols before it refuses
            mapped = zipfile.is_zipfile(file)
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except RefoldError:
        raise
    except Exception as error:  # junk raises KeyError, EOFError, OSError ... from the unpickler
        raise CheckpointError(_unreadable(file, error)) from error


def _unreadable(file: Path, error: Exception) -> str:
    unsafe = re.search(r"GLOBAL (\S+)", str(error))
    if unsafe:
        return (
            f"checkpoint {file} would run code when loaded ({unsafe[1]}) and was not opened; "
            "save model.state_dict() alone and load that"
        )
    return (
        f"checkpoint {file} cannot be read ({type(error).__name__}): it is damaged, truncated or "
        "no checkpoint; copy it again, or save model.state_dict() with torch.save"
    )


def _unwrap(content: object, file: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Follow containers down to a dict of tensors; return it with the names of the containers."""
    unwrapped: list[str] = []
    while isinstance(content, Mapping):
        entries = cast(Mapping[object, object], content)
        held = [name for name in _CONTAINERS if isinstance(entries.get(name), Mapping)]
        if not held:
            return _require_tensors(entries, file), tuple(unwrapped)
        unwrapped.append(held[0])
        content = entries[held[0]]
    raise CheckpointError(
        f"checkpoint {file} holds a {type(content).__name__}, not a dict of tensors; "
        "save model.state_dict()"
    )


def _require_tensors(entries: Mapping[object, object], file: Path) -> dict[str, Tensor]:
    state = {str(name): value for name, value in entries.items() if isinstance(value, Tensor)}
    if len(state) < len(entries):
        others = [str(name) for name, value in entries.items() if not isinstance(value, Tensor)]
        raise CheckpointError(
            f"checkpoint {file} holds entries that are not tensors: {some(others)}; "
            "save model.state_dict() alone"
        )
    if not state:
        raise CheckpointError(f"checkpoint {file} is empty; save model.state_dict()")
    return state


def strip(names: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Map names without what torch.compile, DataParallel and averaging add to those with it."""
    plain = {name.replace("_orig_mod.", ""): name for name in names}
    stripped = ["_orig_mod."] if any(map(ne, plain.keys(), plain.values())) else []
    # torch's AveragedModel counts its updates beside the wrapped names.
    wrapped = {short: name for short, name in plain.items() if short != "n_averaged"}
    while wrapped and all(short.startswith("module.") for short in wrapped):
        plain = wrapped = {short[len("module.") :]: name for short, name in wrapped.items()}
        stripped.append("module.")
    return plain, tuple(stripped)


def require_finite(state: Mapping[str, Tensor], file: Path) -> None:
    """Refuse NaN and infinity, naming the tensors.

    Raises:
        CheckpointError: when there are any.
    """
    bad = [key for key, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise CheckpointError(
            f"checkpoint {file} holds NaN or infinity in {some(bad)}; the training diverged or "
            "the values overflow the model's type: load another checkpoint"
        )


def some(keys: list[str]) -> str:
    """Return the first names, and how many more there are."""
    rest = len(keys) - _SHOWN
    return ", ".join(keys[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
