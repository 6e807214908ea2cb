"""Of the cases of a test some run always; the rest have the `zoo` mark."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def some(cases: Iterable[Any], *, keep: int | Collection[Any]) -> list[Any]:
    """Return the cases: `keep` of them, evenly spread, or those that it names, run always."""
    every = list(cases)
    if isinstance(keep, int):
        always = {round(n * (len(every) - 1) / max(keep - 1, 1)) for n in range(keep)}
    else:
        always = {n for n, case in enumerate(every) if case in keep}
        assert len(always) == len(keep), f"{keep} are not all among the cases"
    return [case if n in always else _rare(case) for n, case in enumerate(every)]


def _rare(case: Any) -> Any:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.zoo)


def rare(*cases: Any) -> list[Any]:
    """Return the cases, each with the mark."""
    return [pytest.param(case, marks=pytest.mark.zoo) for case in cases]
