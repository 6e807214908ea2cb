"""One seeded generator, one thread: a test that fails once fails again."""

from __future__ import annotations

import gc

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Take what was imported and collected out of the garbage collector's rounds."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
