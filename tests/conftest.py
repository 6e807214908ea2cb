"""One seeded generator, one thread: a test that fails once fails again."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
import torch.onnx

torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Take what was imported and collected out of the garbage collector's rounds."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _operators_are_read_once() -> Iterator[None]:
    """Let torch's exporter parse its 500 operators once a process: half the time of an export."""
    export = torch.onnx.export

    def exported(*args: Any, **options: Any) -> Any:
        _share_operators()
        return export(*args, **options)

    torch.onnx.export = exported
    yield
    torch.onnx.export = export


@cache
def _share_operators() -> None:
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    read = cache(ONNXRegistry.from_torchlib)

    def shared(*version: int, **named: int) -> Any:
        registry = copy.copy(read(*version, **named))
        registry.functions = {name: list(found) for name, found in registry.functions.items()}
        return registry

    ONNXRegistry.from_torchlib = staticmethod(shared)
