"""Memory made ready by a thread: nobody else's, and never written to once it is handed out."""

from __future__ import annotations

import threading

import pytest
import torch

from refold.engine import memory as module
from refold.engine.memory import fresh, made_ready


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_cores", lambda: {0, 1})
    monkeypatch.setattr(module, "_WORTH_IT", 0)


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "refold-memory"]


def test_what_is_handed_out_stays_as_it_was_written() -> None:
    kinds = [torch.empty(1 << 20), torch.empty(3, 1 << 18, dtype=torch.float16)] * 8
    with made_ready(kinds):
        taken = [fresh(kind.shape, kind) for kind in kinds]
        for number, tensor in enumerate(taken):
            tensor.fill_(number + 1)
    assert not _threads()
    assert len({tensor.data_ptr() for tensor in taken}) == len(kinds)
    for number, (tensor, kind) in enumerate(zip(taken, kinds, strict=True)):
        assert (tensor.shape, tensor.dtype) == (kind.shape, kind.dtype)
        assert bool((tensor == number + 1).all())


def test_other_shapes_and_types_get_memory_of_their_own() -> None:
    with made_ready([torch.empty(64)]):
        assert fresh(torch.Size([65]), torch.empty(1)).shape == (65,)
        assert fresh(torch.Size([64]), torch.empty(1, dtype=torch.float64)).dtype == torch.float64
        assert fresh(torch.Size([64]), torch.empty(1, device="meta")).device.type == "meta"


def test_an_error_leaves_no_thread() -> None:
    with pytest.raises(KeyError), made_ready([torch.empty(1 << 22)] * 20):
        raise KeyError
    assert not _threads()
    assert fresh(torch.Size([4]), torch.empty(1)).shape == (4,)


@pytest.mark.parametrize("cores", [{0}, {0, 1}])
def test_one_core_or_little_memory_starts_no_thread(
    cores: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_cores", lambda: cores)
    if len(cores) > 1:
        monkeypatch.setattr(module, "_WORTH_IT", 1 << 30)
    with made_ready([torch.empty(1 << 10)]):
        assert not _threads()
        assert fresh(torch.Size([1 << 10]), torch.empty(1)).shape == (1 << 10,)


def test_what_is_being_touched_is_waited_for() -> None:
    """Else a single large result would exist twice."""
    kind = torch.empty(1 << 24)
    for _ in range(3):
        with made_ready([kind]):
            store = module._store.get()
            assert store is not None
            while store._raw:  # until the thread has begun
                pass
            with store._change:
                held = [*store._ready, store._touched]
            own = {tensor.data_ptr() for tensor in held if tensor is not None}
            assert fresh(kind.shape, kind).data_ptr() in own
