"""The examples run and print no difference worth the name."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

from helpers.nightly import some

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SCRIPTS = [p for p in sorted((ROOT / "examples").glob("*.py")) if "__main__" in p.read_text()]
# Its network is folded by the tests of its family.
OFTEN = [path for path in SCRIPTS if path.stem != "rmobilenet"]


@pytest.mark.parametrize("script", some(SCRIPTS, keep=OFTEN), ids=lambda path: path.stem)
def test_example(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: one of its own takes longer to import torch than most take to run."""
    small = ["--small"] if "--small" in script.read_text() else []
    monkeypatch.setattr(sys, "argv", [str(script), *small])
    monkeypatch.syspath_prepend(str(script.parent))  # as Python does for a script
    runpy.run_path(str(script), run_name="__main__")
    told = capsys.readouterr().out
    found = re.findall(r"(?:float64 (\S+) +)?float32 (\S+)", told)  # a file has float32 alone
    assert found
    assert all(float(wide or 0) < 1e-12 and float(single) < 1e-5 for wide, single in found), told
