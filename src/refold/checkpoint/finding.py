"""Find the weights in a checkpoint: every training script wraps them in its own way."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from refold.checkpoint.kinds import some
from refold.checkpoint.pickle_reader import Name, Thing
from refold.checkpoint.rebuilding import as_tensor, is_array
from refold.errors import CheckpointError

# Where training scripts keep the weights inside a checkpoint; averaged ones are the better ones.
_AVERAGED = ("ema", "ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "params_ema")
_PLAIN = (
    *("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network"),
    *("weights", "params"),
)
_CONTAINERS = (*_AVERAGED, *_PLAIN)
# What lies beside the weights and holds tensors of their shapes.
_OTHER = re.compile(r"optim|sched|scaler|callback|\bopt\b|^hyper_param", re.IGNORECASE)
_DEEPEST = 16  # containers in containers; a training script has one or two


@dataclass(frozen=True)
class Choice:
    """One set of weights in a file.

    Args:
        path: the containers that it lies in.
        state: the tensors by name.
        notes: what was converted or left out, in words.
    """

    path: tuple[str, ...]
    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What a user calls it by."""
        return ".".join(self.path)


def find(content: object, file: Path, key: str | None = None) -> list[Choice]:
    """Return the sets of weights in a file's content, usually one.

    Where a container has a name that training scripts keep weights under, it is the only choice,
    and averaged weights come first.

    Args:
        content: of the file.
        file: for the message.
        key: the container to look in, its name or a dotted path.

    Raises:
        CheckpointError: when there are none.
    """
    path: tuple[str, ...] = ()
    if key:
        content, path = _inside(content, key, file)
    found = list(_Search(file).run(content, path, ()))
    if not found:
        raise CheckpointError(f"checkpoint {file} {_nothing(content)}")
    return found


def has_container(content: object, key: str) -> bool:
    """Say whether the content has a container of that name, or dotted path."""
    return _step(content, key) is not None


class _Search:
    """A walk through containers, which looks into each once."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen: set[int] = set()

    def run(self, content: object, path: tuple[str, ...], above: tuple[int, ...]) -> list[Choice]:
        if len(above) > _DEEPEST or id(content) in above:
            raise CheckpointError(
                f"checkpoint {self._file} nests containers without end "
                f"({' > '.join(path[:3])} ...); save model.state_dict() alone"
            )
        if id(content) in self._seen:
            return []
        self._seen.add(id(content))
        above = (*above, id(content))
        if (module := _module_state(content)) is not None:
            return [Choice(path, *_tensors(module))] if module else []
        entries = _entries(content)
        for name in _CONTAINERS:
            if name in entries and (found := self.run(entries[name], (*path, name), above)):
                return found
        state, notes = _tensors(entries)
        found = [
            choice
            for name, child in entries.items()
            if len(above) < _DEEPEST and id(child) not in above and not _is_other(name, child)
            for choice in self.run(child, (*path, str(name)), above)
        ]
        largest = max((len(choice.state) for choice in found), default=0)
        # Single numbers are what training logs, unless there is nothing else.
        is_worth = any(t.ndim for t in state.values()) or (state and not found and not path)
        if not is_worth or len(state) < largest:
            return found
        if any(isinstance(t, Tensor) and not isinstance(name, str) for name, t in entries.items()):
            raise CheckpointError(f"checkpoint {self._file} {_unnamed(entries)}")
        return [Choice(path, state, notes)]


def _is_other(name: object, child: object) -> bool:
    is_held = isinstance(child, dict | list | tuple | Thing)
    return not is_held or bool(_OTHER.search(str(name))) or "param_groups" in _entries(child)


def _inside(content: object, key: str, file: Path) -> tuple[object, tuple[str, ...]]:
    """Follow a dotted path of containers, whose names may hold dots."""
    found = _step(content, key)
    if found is None:
        names = [str(name) for name, child in _entries(content).items() if _entries(child)]
        raise CheckpointError(
            f"checkpoint {file} has no {key!r}; it holds {some(names) or 'no containers'}"
        )
    return found, (key,)


def _step(content: object, key: str) -> object | None:
    entries = {str(name): child for name, child in _entries(content).items()}
    parts = key.split(".")
    for count in range(len(parts), 0, -1):
        child = entries.get(".".join(parts[:count]))
        if isinstance(child, dict | list | tuple | Thing):
            rest = ".".join(parts[count:])
            return _step(child, rest) if rest else child
    return None


def _entries(content: object) -> dict[Any, Any]:
    """Return what a container holds by name; nothing where it is none."""
    if isinstance(content, Thing):
        if (module := _module_state(content)) is not None:
            return module
        state = content.state if isinstance(content.state, dict) else {}
        return {**cast(dict[Any, Any], state), **content.entries}
    if isinstance(content, Mapping):
        return dict(cast(Mapping[Any, Any], content))
    if isinstance(content, list | tuple):
        return dict(enumerate(cast(list[Any], content)))
    return {}


def _module_state(content: object) -> dict[str, Any] | None:
    """Return the state_dict of a pickled module; None for anything else."""
    if not _is_module(content):
        return None
    state: dict[str, Any] = {}
    waiting: list[tuple[str, Any, tuple[int, ...]]] = [("", content, ())]
    while waiting:
        prefix, module, above = waiting.pop(0)
        if not _is_module(module) or id(module) in above:
            continue
        own = module.state
        hidden = own.get("_non_persistent_buffers_set")
        skipped = hidden.items if isinstance(hidden, Thing) else []
        for store in ("_parameters", "_buffers"):
            held = _entries(own.get(store))
            state |= {
                f"{prefix}{k}": v for k, v in held.items() if v is not None and k not in skipped
            }
        parts = _entries(own["_modules"])
        above = (*above, id(module))
        waiting += [(f"{prefix}{name}.", part, above) for name, part in parts.items()]
    return state


def _is_module(content: object) -> bool:
    return isinstance(content, Thing) and isinstance(content.state, dict) and (
        {"_parameters", "_buffers", "_modules"} <= content.state.keys()
    )  # fmt: skip


def _tensors(entries: Mapping[Any, Any]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors among some entries, and a note on the rest."""
    state: dict[str, Tensor] = {}
    others: list[str] = []
    arrays = 0
    for name, value in entries.items():
        tensor = as_tensor(value) if isinstance(name, str) else None
        if tensor is None:
            others.append(str(name)[:100])
        else:
            state[name] = tensor
            arrays += is_array(value)
    notes: list[str] = [f"converted {arrays} NumPy arrays"] if arrays else []
    if others:
        notes.append(f"left out what is not a tensor: {some(others)}")
    return state, tuple(notes)


def _nothing(content: object) -> str:
    """Say what a content without weights is."""
    if isinstance(content, Mapping):
        entries = cast(Mapping[Any, Any], content)
        names = [str(name)[:100] for name in entries]
        if not names or any(isinstance(v, dict) and not v for v in map(entries.get, _CONTAINERS)):
            return "is empty; save model.state_dict()"
        if any(isinstance(value, Tensor) for value in entries.values()):
            return _unnamed(entries)
        return (
            f"holds no weights, only entries that are not tensors: {some(names)}; "
            "save model.state_dict()"
        )
    what = f"a {type(content).__name__}"
    if isinstance(content, Name | Thing):
        what = str(content) if isinstance(content, Name) else content.kind
    return f"holds {what[:100]}, not a dict of tensors; save model.state_dict()"


def _unnamed(entries: Mapping[Any, Any]) -> str:
    names = [str(name)[:100] for name in entries if not isinstance(name, str)]
    return f"holds tensors under keys that are not names: {some(names)}; save model.state_dict()"


def listed(choices: Iterator[Choice] | list[Choice]) -> str:
    """Name the choices, for a message."""
    return some([f"{choice.key} ({len(choice.state)} tensors)" for choice in choices])
