"""One page for all tests that read it or look at it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import refold
from reporting.nets import HOSTILE, Net, lively


@pytest.fixture(scope="package")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "net.html"
    example = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return refold.report(lively(Net()), path, example, name=HOSTILE)
