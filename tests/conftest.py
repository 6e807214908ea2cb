"""One seeded generator, one thread: a test that fails once fails again."""

from __future__ import annotations

import copy
import gc
import signal
from collections.abc import Iterator
from functools import cache
from typing import Any, cast

import pytest
import torch
import torch.onnx

torch.set_num_threads(1)


def pytest_configure() -> None:
    """Hear the signals that whoever started the tests ignores, as a script does: `make test &`.

    What the tests start hears them too.
    """
    handlers: dict[signal.Signals, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    for number, handler in handlers.items():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what takes long first: else one worker ends with it, and the other waits."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    """Take what was imported and collected out of the collector's rounds; make them rare."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _operators_are_read_once() -> Iterator[None]:
    """Let torch's exporters read their tables of operators once a process: half of an export."""
    _share_composites()
    export = torch.onnx.export

    def exported(*args: Any, **options: Any) -> Any:
        _share_operators()
        return export(*args, **options)

    torch.onnx.export = exported
    yield
    torch.onnx.export = export


def _share_composites() -> None:
    """Let `torch.export` list the operators that are made of others once, not at each export."""
    from torch._export import utils

    collect = cast(Any, utils)._collect_all_valid_cia_ops_for_namespace
    cast(Any, utils)._collect_all_valid_cia_ops_for_namespace = cache(collect)


@cache
def _share_operators() -> None:
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    read = cache(ONNXRegistry.from_torchlib)

    def shared(*version: int, **named: int) -> Any:
        registry = copy.copy(read(*version, **named))
        registry.functions = {name: list(found) for name, found in registry.functions.items()}
        return registry

    ONNXRegistry.from_torchlib = staticmethod(shared)
