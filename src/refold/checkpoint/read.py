"""Get the tensors out of a checkpoint file, and nothing else: no code in it is ever run."""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from operator import ne
from pathlib import Path

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from refold.checkpoint.finding import Choice, find, has_container, listed
from refold.checkpoint.formats import recognise, require_size, require_whole_archive
from refold.checkpoint.hdf5 import read_hdf5
from refold.checkpoint.kinds import settle, some, span
from refold.checkpoint.shards import is_index, parts_of, shards_of, weights_in
from refold.checkpoint.untrusted import read_untrusted, require_storages
from refold.errors import CheckpointError, RefoldError
from refold.torch_versions import CHECKS_STORAGES

COUNTERS = frozenset({"n_averaged", "step", "initted"})
"""What averaging keeps beside the wrapped names."""
OPTIONAL = "num_batches_tracked"
"""Unused in eval mode and absent from old files."""
# What wrappers put into the middle of names: torch.compile, FSDP, activation checkpointing.
_INSIDE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


_ADDRESS = re.compile(r"(https?|s3|gs|hf):/")  # a path has one slash left of two


def read_choices(
    path: str | os.PathLike[str], key: str | None = None, *, mapped: bool = False
) -> list[Choice]:
    """Return the sets of weights in a checkpoint file, under the names that the file gives them.

    They are plain arrays of numbers: float8 is widened to float32, which a note says.

    Args:
        path: the file.
        key: the container to take the weights from, or what their names begin with.
        mapped: leave the numbers in the file, from which the system reads them where they are
            used; only safetensors can be read so, and the file must stay as it is meanwhile.

    Raises:
        CheckpointError: When the file is missing, damaged or holds no weights, or none under `key`.
    """
    file = path_of(path)
    content = _read(file, mapped)
    found = find(content, file) if key is None else _named(content, key, file)
    return [_settled(choice, file) for choice in found]


def path_of(place: object) -> Path:
    """Return the path of a checkpoint.

    Raises:
        CheckpointError: when it is not a path, but the weights themselves, say.
    """
    if isinstance(place, (str, os.PathLike)) and str(place):
        if _ADDRESS.match(str(place)):
            raise CheckpointError(
                f"checkpoint {place} is an address: download it, and give the file"
            )
        file = Path(place)
        # A path that no system takes is no folder; `Path.is_dir` would raise.
        return (weights_in(file) if os.path.isdir(file) else None) or file  # noqa: PTH112
    what = "an empty text" if isinstance(place, str) else f"a {type(place).__name__}"
    cure = "; a dict of tensors is loaded by model.load_state_dict" * isinstance(place, Mapping)
    raise CheckpointError(f"a checkpoint is the path of a file, got {what}{cure}")


def files_of(place: object) -> list[Path]:
    """Return the files of a checkpoint: itself, and those that it lists where it is an index.

    Raises:
        CheckpointError: when it is not a path, or an index lists what is not there.
    """
    file = path_of(place)
    return [file, *shards_of(file)] if is_index(file) else [file]


def _named(content: object, key: str, file: Path) -> list[Choice]:
    """Return what lies in a container, or under a prefix of the names in one."""
    parts = key.rstrip(".").split(".")
    for count in range(len(parts), -1, -1):
        container, prefix = ".".join(parts[:count]), ".".join(parts[count:])
        if container and not has_container(content, container):
            continue
        found = find(content, file, container)
        if found := [_below(choice, prefix) for choice in found] if prefix else found:
            found = [choice for choice in found if choice.state]
        if found:
            return found
    return find(content, file, key)  # raises, and names what there is


def _below(choice: Choice, prefix: str) -> Choice:
    """Return the weights below a prefix, the prefix removed from their names."""
    start, names = f"{prefix}.", strip(choice.state)[0]
    state = {
        short[len(start) :]: choice.state[full]
        for short, full in names.items()
        if short.startswith(start)
    }
    return replace(choice, path=(*choice.path, prefix), state=state)


def _settled(choice: Choice, file: Path) -> Choice:
    require_size(file, span(choice.state))
    try:
        plain, notes = settle(choice.state)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {file} holds no plain weights: {error}") from error
    return replace(choice, state=plain, notes=(*choice.notes, *notes))


def require_one(choices: list[Choice], file: Path) -> Choice:
    """Return the only set of weights; those with the same names and values count as one.

    Raises:
        CheckpointError: when there are several; it names them.
    """
    if all(_is_same(choices[0].state, other.state) for other in choices[1:]):
        return choices[0]
    raise CheckpointError(
        f"checkpoint {file} holds several sets of weights: {listed(choices)}; choose one with "
        f"key={choices[0].key!r} (--weights-key {choices[0].key})"
    )


def _is_same(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    (one, _), (two, _) = strip(state), strip(other)
    return one.keys() == two.keys() and all(
        state[key].dtype == other[two[name]].dtype and torch.equal(state[key], other[two[name]])
        for name, key in one.items()
    )


def read_state_dict(path: str | os.PathLike[str], key: str | None = None) -> dict[str, Tensor]:
    """Return the finite tensors of a checkpoint file, unwrapped and without wrapper prefixes.

    Args:
        path: the file.
        key: the container to take them from, where there are several, or a prefix of their names.

    Raises:
        CheckpointError: When the file is missing, damaged, or holds no weights or several sets.
    """
    return read_weights(path, key)[0]


def read_weights(
    path: str | os.PathLike[str], key: str | None = None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Do as `read_state_dict`, and say what was converted or left out.

    Raises:
        CheckpointError: as there.
    """
    choice = require_one(read_choices(path, key), Path(path))
    names = plain_names(choice.state, Path(path))[0]
    state = {name: choice.state[full] for name, full in names.items()}
    require_finite(state, Path(path))
    return state, choice.notes


def plain_names(names: Iterable[str], file: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Do as `strip`, for the names of a file.

    Raises:
        CheckpointError: when two names become one.
    """
    given = list(names)
    plain, stripped = strip(given)
    if twice := sorted(set(given) - set(plain.values()) - COUNTERS):
        raise CheckpointError(
            f"checkpoint {file} has two tensors for one name, with and without a wrapper's prefix: "
            f"{some(twice)}; save the state_dict of the model alone"
        )
    return plain, stripped


def _read(file: Path, mapped: bool = False) -> object:
    if is_index(file):
        shards = shards_of(file).items()
        parts = [parts_of(shard, _read(shard, mapped), names) for shard, names in shards]
        return {name: value for part in parts for name, value in part.items()}
    form = _recognised(file, mapped)
    try:
        if form == "safetensors":
            return _read_safetensors(file, mapped)
        if form == "hdf5":
            return read_hdf5(file)
        if form == "archive":
            require_whole_archive(file)
            if not CHECKS_STORAGES:
                require_storages(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on pickle protocols before it refuses
            # Not mapped into memory: torch would take a tensor that is longer than its member of
            # the archive, and fill it with the bytes that follow.
            return torch.load(file, map_location="cpu", weights_only=True, mmap=False)
    except (RefoldError, MemoryError):
        raise
    except pickle.UnpicklingError as error:  # it names a class that torch's reader does not know
        try:
            return read_untrusted(file)
        except Exception:
            raise _unreadable(file, error) from error
    except Exception as error:  # junk raises KeyError, EOFError, OSError ... from the unpickler
        raise _unreadable(file, error) from error


def _recognised(file: Path, mapped: bool) -> str:
    form = recognise(file)
    if mapped and form != "safetensors":
        raise CheckpointError(
            f"checkpoint {file} is no safetensors file, and only these are streamed: save its "
            "weights with safetensors.torch.save_file"
        )
    return form


def _read_safetensors(file: Path, mapped: bool) -> dict[str, Tensor]:
    if mapped:
        with safe_open(file, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in sorted(stored.keys(), key=_numbered)}
    found = safetensors.torch.load(file.read_bytes())  # in an order of the moment
    return {name: found[name] for name in sorted(found, key=_numbered)}


def _numbered(name: str) -> list[tuple[int, int | str]]:
    """Return what names are sorted by, so that layer 10 follows layer 9.

    >>> sorted(["b.10", "b.9", "a"], key=_numbered)
    ['a', 'b.9', 'b.10']
    """
    parts = re.split(r"(\d+)", name)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]


def _unreadable(file: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {file} cannot be read ({type(error).__name__}): it is damaged, truncated or "
        "not a checkpoint; copy it again, or save model.state_dict() with torch.save"
    )


def strip(names: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Map names without what torch's own wrappers and averaging add to those with it."""
    plain = {name: name for name in names}
    stripped: list[str] = []
    for part in _INSIDE:
        bare = {short.replace(part, ""): name for short, name in plain.items()}
        stripped += [part] if any(map(ne, bare, plain)) else []
        plain = bare
    wrapped = {short: name for short, name in plain.items() if short not in COUNTERS}
    while wrapped and all(short.startswith("module.") for short in wrapped):
        plain = wrapped = {short[len("module.") :]: name for short, name in wrapped.items()}
        stripped.append("module.")
    return plain, tuple(stripped)


def require_finite(
    state: Mapping[str, Tensor], file: Path, unbounded: Collection[str] = ()
) -> None:
    """Refuse NaN and infinity, naming the tensors.

    Args:
        state: the tensors by name.
        file: for the message.
        unbounded: names of those in which infinity means something, such as the range of a clamp.

    Raises:
        CheckpointError: when there are any.
    """
    bad = [key for key, tensor in state.items() if not _is_sound(tensor, key in unbounded)]
    if bad:
        raise CheckpointError(
            f"checkpoint {file} holds NaN or infinity in {some(bad)}; the training diverged or "
            "the values overflow the model's type: load another checkpoint"
        )


def _is_sound(tensor: Tensor, unbounded: bool) -> bool:
    """Say whether a tensor holds no NaN, and no infinity unless it may."""
    if not tensor.is_floating_point():
        return bool((~torch.isnan(tensor) if unbounded else torch.isfinite(tensor)).all())
    if not tensor.numel():
        return True
    ends = torch.stack(torch.aminmax(tensor.detach()))  # NaN is both; no mask as large as weights
    return bool((~torch.isnan(ends) if unbounded else torch.isfinite(ends)).all())
