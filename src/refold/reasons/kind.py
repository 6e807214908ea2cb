"""What a kind of reason is, and how a sentence of an account is matched to one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

GAP = "…"
"""What stands in a sentence for names, numbers and other reasons."""

Fit = tuple[int, int]
"""How many fixed characters a sentence begins with, and how many it has."""


@dataclass(frozen=True)
class Reason:
    """One kind of reason why something was left as it was.

    Args:
        title: what is the matter, as a heading.
        says: the sentences that accounts print, with `GAP` for what differs from place to place.
        cause: why the step would be wrong, or is not worth it.
        cure: what to do about it.
    """

    title: str
    says: tuple[str, ...]
    cause: str
    cure: str

    @cached_property
    def forms(self) -> tuple[tuple[Fit, re.Pattern[str]], ...]:
        """Each sentence as how much of it is fixed, and the pattern that it is."""
        return tuple(map(_form, self.says))

    def fit(self, text: str) -> Fit:
        """Return how well a sentence is one of this kind, zeros where it is none.

        Where a reason holds another one the words that it begins with are its own.
        """
        return max((known for known, form in self.forms if form.fullmatch(text)), default=(0, 0))


def _form(sentence: str) -> tuple[Fit, re.Pattern[str]]:
    parts = sentence.split(GAP)
    known = (len(parts[0]), sum(map(len, parts)))
    return known, re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
