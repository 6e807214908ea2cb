"""The examples run and print no difference worth the name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = [p for p in sorted((ROOT / "examples").glob("*.py")) if "__main__" in p.read_text()]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_example(script: Path) -> None:
    small = ["--small"] if "--small" in script.read_text() else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, str(script), *small],
        capture_output=True, text=True, env=environment, check=False, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = re.findall(r"float64 (\S+) +float32 (\S+)", run.stdout)
    assert found
    assert all(float(wide) < 1e-12 and float(single) < 1e-5 for wide, single in found), run.stdout
