"""Run the command line in this process, as the console script would."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from refold.cli.app import main
from refold.sources.guest import PREFIX


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("REFOLD_DEBUG", raising=False)
    for name in [name for name in sys.modules if name.startswith(PREFIX)]:
        monkeypatch.delitem(sys.modules, name)  # files that other tests ran are no user's here

    def call(*words: str | Path) -> Result:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def net() -> Callable[[str], str]:
    """Return the MODEL of a tiny network by its name in nets.py."""
    return lambda name: f"{Path(__file__).with_name('nets.py')}:{name}"
