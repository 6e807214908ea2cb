"""Recipes by name and from files: read, checked, changed by `key=value`, written."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, cast

from refold.errors import InputError, MissingDependencyError
from refold.training import recipes

_FOLDER = "recipes"
_SUFFIXES = (".yaml", ".yml")


def list_recipes() -> list[str]:
    """Return the names of the recipes that ship with refold, sorted.

    Examples:
        >>> "digits" in list_recipes()
        True
    """
    folder = resources.files("refold.training") / _FOLDER
    return sorted(Path(file.name).stem for file in folder.iterdir() if file.name.endswith(".yaml"))


def load_recipe(name: str | Path, changes: Mapping[str, Any] | None = None) -> recipes.Recipe:
    """Return a recipe of ours by its name, or one in a YAML file.

    Args:
        name: one of `list_recipes()`, or the path of a file.
        changes: values that replace the recipe's, by dotted key (`optimizer.lr`).

    Raises:
        InputError: when there is no such recipe, or a key or a value of it is wrong; the message
            names the file and the key.
        MissingDependencyError: when PyYAML or pydantic is not installed.

    Examples:
        >>> load_recipe("digits", {"optimizer.lr": 0.05}).optimizer.lr
        0.05
    """
    text, place = _text(str(name))
    values = _parsed(text, place)
    values.setdefault("name", Path(str(name)).stem)
    return check_recipe(changed(values, changes or {}), place)


def changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a recipe with some replaced, by dotted key.

    Options of the model, or of the block, go where another one is wanted: they belong to it.

    Examples:
        >>> changed({"optimizer": {"lr": 0.1, "name": "sgd"}}, {"optimizer.lr": 0.05})
        {'optimizer': {'lr': 0.05, 'name': 'sgd'}}
    """
    result = dict(values)
    for key, own in (("model", "options"), ("block", "block_options")):
        if key in changes and changes[key] != values.get(key):
            result.pop(own, None)
    for key, value in changes.items():
        _put(result, key, value)
    return result


def check_recipe(values: Mapping[str, Any], place: str) -> recipes.Recipe:
    """Return a recipe from plain values.

    Args:
        values: its keys.
        place: what a message calls it.

    Raises:
        InputError: when a key is unknown or missing, or a value of it is wrong.
    """
    try:
        from pydantic import ValidationError

        from refold.training.recipes.recipe import Recipe
    except ImportError as error:
        raise _missing(error) from error
    try:
        return Recipe.model_validate(dict(values))
    except ValidationError as error:
        raise InputError(_explained(error.errors(), place)) from error


def to_yaml(values: Mapping[str, Any]) -> str:
    """Return plain values as YAML, in their order."""
    import yaml

    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def from_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping of a YAML file.

    Raises:
        InputError: when it cannot be read, or holds none.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return _parsed(text, str(path))


def parse_change(text: str) -> tuple[str, Any]:
    """Return key and value of `key=value`; the value is read as YAML.

    Raises:
        InputError: when there is no `=`.

    Examples:
        >>> parse_change("optimizer.lr=0.05")
        ('optimizer.lr', 0.05)
    """
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise InputError(
            f"--set {text!r} is not a change: write key=value, such as optimizer.lr=0.05"
        )
    return key.strip(), _loaded(value, f"--set {text!r}")


def _text(name: str) -> tuple[str, str]:
    if name.endswith(_SUFFIXES):
        path = Path(name)
        if not path.is_file():
            raise InputError(f"there is no recipe file {name!r}")
        return path.read_text(), name
    known = list_recipes()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(known)}"
        raise InputError(f"there is no recipe {name!r}: {hint} (or give a .yaml file)")
    file = resources.files("refold.training") / _FOLDER / f"{name}.yaml"
    return file.read_text(), f"{name}.yaml"


def _parsed(text: str, place: str) -> dict[str, Any]:
    values = _loaded(text, place)
    if not isinstance(values, dict):
        raise InputError(f"{place} holds no keys: a recipe is a YAML mapping")
    return cast("dict[str, Any]", values)


def _loaded(text: str, place: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise _missing(error) from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{place} is not valid YAML: {' '.join(str(error).split())}") from error


def _missing(error: ImportError) -> MissingDependencyError:
    return MissingDependencyError(f"recipes need {error.name}: run pip install 'refold[train]'")


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *above, last = key.split(".")
    for at, name in enumerate(above, 1):
        below = values.get(name) or {}
        if not isinstance(below, Mapping):
            holder = ".".join(above[:at])
            raise InputError(f"there is no key {key!r}: {holder!r} is one value, {below!r}")
        values[name] = below = dict(cast("Mapping[str, Any]", below))
        values = below
    values[last] = value


def _explained(errors: Sequence[Any], place: str) -> str:
    """Return one sentence for each thing that is wrong, naming file and key."""
    lines = [_one(error, place) for error in errors[:5]]
    more = f" (and {len(errors) - 5} more)" if len(errors) > 5 else ""
    return "; ".join(lines) + more


def _one(error: Mapping[str, Any], place: str) -> str:
    where = [str(part) for part in error["loc"]]
    key = ".".join(where)
    if error["type"] == "extra_forbidden":
        if (meant := _MEANT.get(where[-1].replace("-", "_"))) and meant != key:
            return f"{place}: unknown key {key!r}; the recipe calls it {meant!r}"
        known = _keys(where[:-1])
        near = difflib.get_close_matches(where[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"{place}: unknown key {key!r}; {hint}"
    if error["type"] == "missing":
        return f"{place}: the key {key!r} is missing"
    what = str(error["msg"]).removeprefix("Value error, ")
    return f"{place}: {key}: {what}, got {error['input']!r}" if key else f"{place}: {what}"


_MEANT = {
    "lr": "optimizer.lr", "learning_rate": "optimizer.lr", "momentum": "optimizer.momentum",
    "image_size": "augment.size", "input_size": "augment.size", "size": "augment.size",
    "weight_decay": "decay.value", "warmup": "schedule.warmup", "label_smoothing": "loss.smoothing",
    "mean": "augment.mean", "std": "augment.std", "mixup": "mix.mixup", "cutmix": "mix.cutmix",
    "remove_residuals": "deploy.remove_residuals", "allow_growth": "deploy.allow_growth",
    "files": "deploy.files", "weights": "checkpoint", "batch": "batch_size", "arch": "model",
}  # fmt: skip
"""What other tools, and our own options, call a key."""


def _keys(path: Sequence[str]) -> list[str]:
    from refold.training.recipes import recipe

    kind: Any = recipe.Recipe
    for name in path:
        kind = getattr(recipe, name.capitalize(), kind)
    return list(kind.model_fields)
