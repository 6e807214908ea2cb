"""Random files against ONNX Runtime: `fold_onnx` itself runs both, at two sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.onnx_graphs import random_model
from helpers.onnx_texts import kinds, written
from refold.onnx_files import fold_onnx
from refold.onnx_files.trials import session


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("random")


def check(folder: Path, made: Any) -> None:
    source, out = written(folder, made), folder / "out.onnx"
    session(source)  # else the generator is wrong
    report = fold_onnx(source, out)
    assert not [item for item in report.kept if "defect" in item.reason]
    assert len(kinds(out)) <= len(kinds(source))
    onnx.checker.check_model(onnx.load(out))


@pytest.mark.slow
@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 2**32 - 1))
def test_random_files(folder: Path, seed: int) -> None:
    check(folder, random_model(seed))


@pytest.mark.zoo
@pytest.mark.parametrize("block", range(20))
def test_a_thousand_random_files(folder: Path, block: int) -> None:
    for seed in range(50 * block, 50 * block + 50):
        check(folder, random_model(seed))
