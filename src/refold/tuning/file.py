"""The tuning file: choices that are made again without measuring."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from refold.errors import InputError, MissingDependencyError
from refold.files import is_file, write_json
from refold.tuning.choices import Choices, digest
from refold.tuning.measuring import Speed
from refold.tuning.outcome import Trial, Tuning

if TYPE_CHECKING:
    from refold.tuning.schema import TuningFile

FORMAT = 1


def save_tuning(tuning: Tuning, path: str | os.PathLike[str]) -> None:
    """Write what tuning found as a small JSON file.

    Args:
        tuning: what `tune` returned.
        path: the file.

    Raises:
        InputError: when it cannot be written.
    """
    checked = _schema().model_validate({"format": FORMAT, **tuning.to_dict()})
    write_json(path, checked.model_dump(mode="json"))


def load_tuning(path: str | os.PathLike[str], model: nn.Module | None = None) -> Tuning:
    """Read a tuning file.

    Args:
        path: the file.
        model: the network that it is for, where that is to be checked.

    Raises:
        InputError: when it is not a tuning file, or one for a network of another structure.
        MissingDependencyError: when pydantic is not installed.
    """
    if not is_file(path):
        raise InputError(f"there is no file {str(path)!r}: write it with refold tune -o {path}")
    schema = _schema()
    from pydantic import ValidationError

    try:
        found = schema.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        raise InputError(
            f"{path} is not a tuning file ({_first(error)}): write one with refold tune -o {path}"
        ) from error
    if model is not None and digest(model) != found.network:
        raise InputError(
            f"{path} is for a network with other weights or shapes; tune this one, or give the "
            "network that it was made for"
        )
    return _tuning(found)


def _tuning(found: TuningFile) -> Tuning:
    trials = (
        Trial(trial.name, _speed(trial.speed), trial.adopted, trial.reason)
        for trial in found.trials
    )
    return Tuning(
        Choices(**found.choices.model_dump()),
        found.runtime,
        found.network,
        found.shapes,
        found.machine,
        tuple(trials),
        _speed(found.speed),
    )


def _speed(values: tuple[float, float, float] | None) -> Speed | None:
    return None if values is None else Speed(*values)


def _first(error: Any) -> str:
    if hasattr(error, "errors"):
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return f"{where}: {first['msg']}".lstrip(": ")
    return str(error).splitlines()[0]


def _schema() -> type[TuningFile]:
    try:
        from refold.tuning.schema import TuningFile
    except ImportError as error:
        raise MissingDependencyError(
            "tuning files need pydantic: run pip install 'refold[train]'"
        ) from error
    return TuningFile
