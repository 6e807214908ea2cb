"""Load weights from a file: tensors only, whole or not at all, every mismatch named."""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import ne
from pathlib import Path
from typing import cast

import safetensors.torch
import torch
from torch import Tensor, nn

from .errors import CheckpointError

# Where training scripts keep the weights inside a checkpoint; averaged ones are the better ones.
_AVERAGED = ("ema", "ema_state_dict", "state_dict_ema", "model_ema")
_CONTAINERS = (*_AVERAGED, "state_dict", "model_state_dict", "model", "module")
_OPTIONAL = "num_batches_tracked"  # unused in eval mode and absent from old files
_ROLES = frozenset({"weight", "bias", "running_mean", "running_var", _OPTIONAL})
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What was loaded, from which containers inside the file, without which name prefixes."""

    path: Path
    loaded: int
    unwrapped: tuple[str, ...] = ()
    stripped: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Say it in one line."""
        within = f" from {' > '.join(self.unwrapped)}" if self.unwrapped else ""
        without = f" without prefix {', '.join(self.stripped)}" if self.stripped else ""
        return f"loaded {self.loaded} tensors of {self.path.name}{within}{without}"


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> LoadReport:
    """Load a file's weights into the model, in place; every key and shape must fit.

    Reads safetensors and `torch.save` files, the latter without ever running code from them.
    Weights may sit inside `state_dict`, `model`, `ema` and the like (averaged weights win), and
    their names may begin with `module.` or contain `_orig_mod.`. Values are cast to the model's
    types. A file may lack `num_batches_tracked`.

    Raises:
        CheckpointError: When the file is missing, damaged, unsafe, holds anything but finite
            tensors, or does not fit; the model is then unchanged.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> file = Path(folder.name) / "linear.pth"
        >>> torch.save({"state_dict": nn.Linear(2, 3).state_dict()}, file)
        >>> print(load_checkpoint(nn.Linear(2, 3), file))
        loaded 2 tensors of linear.pth from state_dict
        >>> folder.cleanup()
    """
    file = Path(path)
    raw, unwrapped = _unwrap(_read(file), file)
    theirs, stripped = _strip(raw)
    state = {name: raw[key] for name, key in theirs.items()}
    targets = model.state_dict()
    ours, own_stripped = _strip(targets)  # a wrapped model has such prefixes of its own
    own = {name: targets[key] for name, key in ours.items()}
    _require_fit(own, state, file)
    _require_finite({name: tensor.to(own[name].dtype) for name, tensor in state.items()}, file)
    model.load_state_dict({ours[name]: tensor for name, tensor in state.items()}, strict=False)
    stripped = tuple(prefix for prefix in stripped if prefix not in own_stripped)
    return LoadReport(file, len(state), unwrapped, stripped)


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the finite tensors of a checkpoint file, unwrapped and without wrapper prefixes.

    Raises:
        CheckpointError: When the file is missing, damaged, unsafe or holds anything else.
    """
    file = Path(path)
    raw, _ = _unwrap(_read(file), file)
    names, _ = _strip(raw)
    state = {name: raw[key] for name, key in names.items()}
    _require_finite(state, file)
    return state


def load_in_order(model: nn.Module, state: Mapping[str, Tensor]) -> int:
    """Load the same tensors under other names: the n-th of `state` into the n-th of the model.

    Exact when both list the same layers in the same order, which equal counts and shapes suggest
    but cannot prove; names such as `weight` or `running_var` must also agree where both use them.

    Returns:
        How many tensors were loaded.

    Raises:
        CheckpointError: When counts, a shape or a role differ; the model is then unchanged.
    """
    own = model.state_dict()
    if len(own) != len(state):
        raise CheckpointError(
            f"the model has {len(own)} tensors and the checkpoint {len(state)}: they cannot be "
            "matched in order; load a checkpoint of this very architecture"
        )
    for (name, target), (other, tensor) in zip(own.items(), state.items(), strict=True):
        roles = name.rpartition(".")[2], other.rpartition(".")[2]
        if target.shape != tensor.shape or (roles[0] != roles[1] and _ROLES.issuperset(roles)):
            raise CheckpointError(
                f"{other} {tuple(tensor.shape)} of the checkpoint stands where the model has "
                f"{name} {tuple(target.shape)}: they cannot be matched in order"
            )
    model.load_state_dict(dict(zip(own, state.values(), strict=True)))
    return len(own)


def _read(file: Path) -> object:
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise CheckpointError(f"checkpoint {file} {what}; give a .pth or .safetensors file")
    try:
        if file.suffix.lower() == ".safetensors":
            return safetensors.torch.load(file.read_bytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on pickle protocols before it refuses
            mapped = zipfile.is_zipfile(file)
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
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
            f"checkpoint {file} holds entries that are not tensors: {_some(others)}; "
            "save model.state_dict() alone"
        )
    if not state:
        raise CheckpointError(f"checkpoint {file} is empty; save model.state_dict()")
    return state


def _strip(names: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Map names without what torch.compile, DataParallel and averaging add to those with it."""
    plain = {name.replace("_orig_mod.", ""): name for name in names}
    stripped = ["_orig_mod."] if any(map(ne, plain.keys(), plain.values())) else []
    # torch's AveragedModel counts its updates beside the wrapped names.
    wrapped = {short: name for short, name in plain.items() if short != "n_averaged"}
    while wrapped and all(short.startswith("module.") for short in wrapped):
        plain = wrapped = {short[len("module.") :]: name for short, name in wrapped.items()}
        stripped.append("module.")
    return plain, tuple(stripped)


def _require_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor], file: Path) -> None:
    missing = [key for key in own if key not in state and not key.endswith(_OPTIONAL)]
    unexpected = [key for key in state if key not in own]
    reshaped = [
        f"{key} {tuple(tensor.shape)} instead of {tuple(own[key].shape)}"
        for key, tensor in state.items()
        if key in own and own[key].shape != tensor.shape
    ]
    groups = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    faults = [f"{len(keys)} {what}: {_some(keys)}" for what, keys in groups.items() if keys]
    if faults:
        raise CheckpointError(
            f"checkpoint {file} does not fit the model: {'; '.join(faults)}; "
            "load it into the architecture (train or deploy form) it was saved from"
        )


def _require_finite(state: Mapping[str, Tensor], file: Path) -> None:
    bad = [key for key, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise CheckpointError(
            f"checkpoint {file} holds NaN or infinity in {_some(bad)}; the training diverged or "
            "the values overflow the model's type: load another checkpoint"
        )


def _some(keys: list[str]) -> str:
    rest = len(keys) - _SHOWN
    return ", ".join(keys[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
