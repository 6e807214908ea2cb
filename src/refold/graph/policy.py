"""What a fold may do besides what is exact: where branches merge, where layers may grow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Policy:
    """Choices that leave the function as it is, for the whole model or some of its parts.

    Args:
        allow_growth: also merge what then needs more multiply-adds, everywhere.
        apart: paths of parts whose parallel branches are not merged; chains fold all the same.
        grown: paths of parts where merges may need more multiply-adds.
        drop_unread: also leave out layers whose value nobody reads; training may use them.

    Examples:
        >>> policy = Policy(apart=frozenset({"stage.1"}))
        >>> policy.keeps_apart(["stage.1.conv"]), policy.keeps_apart(["stage.10.conv"])
        (True, False)
    """

    allow_growth: bool = False
    apart: frozenset[str] = frozenset()
    grown: frozenset[str] = frozenset()
    drop_unread: bool = False

    def keeps_apart(self, paths: Iterable[str]) -> bool:
        """Say whether branches made of these layers are not merged."""
        return bool(self.apart) and any(_is_within(path, self.apart) for path in paths)

    def grows(self, paths: Iterable[str]) -> bool:
        """Say whether a merge of these layers may need more multiply-adds than they do."""
        within = bool(self.grown) and any(_is_within(path, self.grown) for path in paths)
        return self.allow_growth or within


def _is_within(path: str, places: frozenset[str]) -> bool:
    steps = path.split(".")
    return any(".".join(steps[:length]) in places for length in range(len(steps) + 1))
