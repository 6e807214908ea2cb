"""How to train, as data: read, check and write recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refold.training.recipes.recipe import Recipe as Recipe


def __getattr__(name: str) -> Any:
    """Import `Recipe` where it is asked for: it needs pydantic, of `refold[train]`."""
    if name != "Recipe":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from refold.training.recipes.recipe import Recipe

    return Recipe
