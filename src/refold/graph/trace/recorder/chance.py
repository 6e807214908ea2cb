"""Random numbers that Python and NumPy draw for themselves: they show in no graph."""

from __future__ import annotations

import random
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import torch


class Chance:
    """The state of Python's and NumPy's generators: a draw shows, and is taken back.

    Examples:
        >>> chance = Chance()
        >>> _ = random.random()
        >>> chance.moved(), chance.moved(), chance.restore()
        (True, False, True)
    """

    def __init__(self) -> None:
        self._first = self._last = _state()

    def moved(self) -> bool:
        """Say whether numbers were drawn since the last question."""
        before, self._last = self._last, _state()
        return _differ(before, self._last)

    def restore(self) -> bool:
        """Take back every draw; say whether there was one."""
        if not _differ(self._first, _state()):
            return False
        random.setstate(self._first[0])
        if self._first[1] is not None:
            sys.modules["numpy"].random.set_state(self._first[1])
        return True


@contextmanager
def seeded() -> Generator[None]:
    """Run with the same random numbers every time, of torch, Python and NumPy.

    Those of Python and NumPy are as before afterwards; torch's are the caller's to put back.
    """
    chance = Chance()
    torch.manual_seed(0)
    random.seed(0)
    if (numpy := sys.modules.get("numpy")) is not None:
        cast(Any, numpy).random.seed(0)
    try:
        yield
    finally:
        chance.restore()


_State = tuple[Any, Any]


def _state() -> _State:
    numpy: Any = sys.modules.get("numpy")
    return random.getstate(), None if numpy is None else numpy.random.get_state()


def _differ(before: _State, after: _State) -> bool:
    if before[0] != after[0]:
        return True
    if before[1] is None or after[1] is None:
        return False
    return before[1][2] != after[1][2] or bool((before[1][1] != after[1][1]).any())
