"""The networks of the command line's tests, as files of a user."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def net() -> Callable[[str], str]:
    """Return the MODEL of a tiny network by its name in nets.py."""
    return lambda name: f"{Path(__file__).parents[1] / 'cli' / 'nets.py'}:{name}"
