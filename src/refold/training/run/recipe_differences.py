"""Check that a resumed run is asked for what it was started with; name any difference."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from refold.errors import InputError

if TYPE_CHECKING:
    from refold.training.recipes.recipe import Recipe
    from refold.training.run.begun import Begun

_WORDS = frozenset({"name", "source", "aims", "data"})  # which say what a recipe is, and do nothing
_FLAGS = {
    "optimizer.lr": "--lr", "augment.size": "--image-size", "batch_size": "--batch-size",
    **{name: f"--{name}" for name in ("model", "block", "task", "epochs", "seed")},
}  # fmt: skip
_SHOWN = 3


def require_same(begun: Begun, wanted: Recipe, run: Path) -> None:
    """Refuse to resume a run with another recipe than its own.

    Args:
        begun: what the run was started with.
        wanted: the recipe that is asked for now.
        run: its folder.

    Raises:
        InputError: when they differ; the message names the settings that do.
    """
    found = differences(begun, wanted)
    if not found:
        return
    raise InputError(
        f"{shown(found)}: to continue the run in {run}, drop these options (its own settings "
        "apply); for other settings, start a run in another folder"
    )


def differences(begun: Begun, wanted: Recipe) -> list[str]:
    """Return what is asked for now and was not when a run was started, one phrase each."""
    used, asked, now = map(_flat, (begun.recipe, begun.asked, wanted))
    return [
        f"{_said(key, now.get(key))}, but the run was started with {_shown(asked.get(key))}"
        for key in {**now, **asked}
        if not (key == "model" and begun.given)  # whose name says nothing
        and not any(_same(key, now.get(key), then.get(key)) for then in (asked, used))
    ]


def shown(found: list[str]) -> str:
    """Return the first of some phrases, and how many more there are."""
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{'; '.join(found[:_SHOWN])}{more}"


def _flat(recipe: Recipe) -> dict[str, Any]:
    """Return the settings of a recipe by dotted key."""
    values = recipe.model_dump(mode="json")
    return {key: value for key, value in _leaves(values, "") if key not in _WORDS}


def _leaves(values: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(cast("dict[str, Any]", value), f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _same(key: str, now: Any, then: Any) -> bool:
    if key == "model":  # it may be the path of a file
        return os.path.abspath(now) == os.path.abspath(then)  # noqa: PTH100 (keeps the last link)
    return now == then


def _said(key: str, value: Any) -> str:
    flag = _FLAGS.get(key)
    return f"{flag} {_shown(value)}" if flag else f"--set {key}={_shown(value)}"


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
