"""Get the tensors out of a checkpoint file, and nothing else: no code in it is ever run."""

from __future__ import annotations

import argparse
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from operator import ne
from pathlib import Path
from typing import NamedTuple, cast

import safetensors.torch
import torch
from torch import Tensor

from refold.checkpoint.formats import recognise, require_size, require_whole_archive
from refold.checkpoint.hdf5 import read_hdf5
from refold.checkpoint.kinds import settle, some, span
from refold.errors import CheckpointError, RefoldError

# Where training scripts keep the weights inside a checkpoint; averaged ones are the better ones.
_AVERAGED = ("ema", "ema_state_dict", "state_dict_ema", "model_ema")
_CONTAINERS = (*_AVERAGED, "state_dict", "model_state_dict", "model", "module")
_DEEPEST = 16  # containers in containers; a training script has one or two
_COUNTER = "n_averaged"  # of updates, which torch's AveragedModel keeps beside the wrapped names
OPTIONAL = "num_batches_tracked"
"""Unused in eval mode and absent from old files."""


class Contents(NamedTuple):
    """The tensors of a file by name, what they lay in, and what was done to names and values."""

    state: dict[str, Tensor]
    unwrapped: tuple[str, ...]
    stripped: tuple[str, ...]
    notes: tuple[str, ...]


def read_contents(path: str | os.PathLike[str]) -> Contents:
    """Return the tensors of a checkpoint file, unwrapped and without wrapper prefixes.

    They are plain arrays of numbers: float8 is widened to float32, which a note says.

    Raises:
        CheckpointError: When the file is missing, damaged, unsafe or holds anything else.
    """
    file = Path(path)
    raw, unwrapped = _unwrap(_read(file), file)
    require_size(file, span(raw))
    try:
        plain, notes = settle(raw)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {file} holds no plain weights: {error}") from error
    names, stripped = strip(plain)
    if twice := sorted(set(plain) - set(names.values()) - {_COUNTER}):
        raise CheckpointError(
            f"checkpoint {file} has two tensors for one name, with and without a wrapper's prefix: "
            f"{some(twice)}; save the state_dict of the model alone"
        )
    state = {name: plain[key] for name, key in names.items()}
    return Contents(state, unwrapped, stripped, notes)


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the finite tensors of a checkpoint file, unwrapped and without wrapper prefixes.

    Raises:
        CheckpointError: When the file is missing, damaged, unsafe or holds anything else.
    """
    return read_weights(path)[0]


def read_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Do as `read_state_dict`, and say how values that are not plain numbers were converted.

    Raises:
        CheckpointError: as there.
    """
    contents = read_contents(path)
    require_finite(contents.state, Path(path))
    return contents.state, contents.notes


def _read(file: Path) -> object:
    form = recognise(file)
    try:
        if form == "safetensors":
            return safetensors.torch.load(file.read_bytes())
        if form == "hdf5":
            return read_hdf5(file)
        if form == "archive":
            require_whole_archive(file)
        # Training scripts store their parsed arguments beside the weights: plain data in a class.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # torch remarks on pickle protocols before it refuses
            # Not mapped into memory: torch would take a tensor that is longer than its member of
            # the archive, and fill it with the bytes that follow.
            return torch.load(file, map_location="cpu", weights_only=True, mmap=False)
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
        if len(unwrapped) > _DEEPEST:
            raise CheckpointError(
                f"checkpoint {file} holds containers in containers without end "
                f"({' > '.join(unwrapped[:3])} ...); save model.state_dict() alone"
            )
        content = entries[held[0]]
    raise CheckpointError(
        f"checkpoint {file} holds a {type(content).__name__}, not a dict of tensors; "
        "save model.state_dict()"
    )


def _require_tensors(entries: Mapping[object, object], file: Path) -> dict[str, Tensor]:
    state = {str(name): value for name, value in entries.items() if isinstance(value, Tensor)}
    others = [str(name)[:100] for name, value in entries.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(
            f"checkpoint {file} holds entries that are not tensors: {some(others)}; "
            "save model.state_dict() alone"
        )
    unnamed = [str(name)[:100] for name in entries if not isinstance(name, str)]
    if unnamed:
        raise CheckpointError(
            f"checkpoint {file} holds tensors under keys that are no names: {some(unnamed)}; "
            "save model.state_dict() alone"
        )
    if not state:
        raise CheckpointError(f"checkpoint {file} is empty; save model.state_dict()")
    return state


def strip(names: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Map names without what torch.compile, DataParallel and averaging add to those with it."""
    plain = {name.replace("_orig_mod.", ""): name for name in names}
    stripped = ["_orig_mod."] if any(map(ne, plain.keys(), plain.values())) else []
    wrapped = {short: name for short, name in plain.items() if short != _COUNTER}
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
