"""What the engine did to a model and what it left alone, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

COMPUTED = "weight computed once"
"""The rule of a weight that was computed at every call and is stored now."""


@dataclass(frozen=True)
class Fold:
    """One accepted fold.

    Args:
        where: module path of the layer that remains.
        rule: the rules that made it, in order of use.
        detail: which layers went into it.
        parameters_before, parameters_after: of the layers involved.
        macs_before, macs_after: their multiply-adds on the example input; None without one.
        made_of: module paths of the layers that went into it.
    """

    where: str
    rule: str
    detail: str
    parameters_before: int
    parameters_after: int
    macs_before: int | None = None
    macs_after: int | None = None
    made_of: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)


@dataclass(frozen=True)
class Kept:
    """One candidate that was not folded, with the reason.

    Args:
        where: module path.
        reason: a sentence.
        costlier: True where the fold is legal and only needs more multiply-adds.
    """

    where: str
    reason: str
    costlier: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)
