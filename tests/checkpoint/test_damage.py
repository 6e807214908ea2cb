"""However a file is damaged, it loads as it should or is refused; it never hangs."""

from __future__ import annotations

import io
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from refold.checkpoint import load_checkpoint
from refold.errors import RefoldError

STATE = {"weight": torch.linspace(-1, 1, 12).reshape(4, 3), "bias": torch.linspace(1, 2, 4)}
SECONDS = 60  # far more than the slowest takes


def zipped() -> bytes:
    stream = io.BytesIO()
    torch.save({"state_dict": STATE, "epoch": 3}, stream)
    return stream.getvalue()


def legacy() -> bytes:
    stream = io.BytesIO()
    torch.save(STATE, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def tensors() -> bytes:
    return safetensors.torch.save(STATE, {"format": "pt"})


def hdf5() -> bytes:
    h5py = pytest.importorskip("h5py")
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file["weight"] = STATE["weight"].numpy()
        file.create_dataset("bias", data=STATE["bias"].numpy(), chunks=(2,), compression="gzip")
    return stream.getvalue()


@pytest.fixture
def alarm() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no answer: signal {number} in {frame}")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def damages(data: bytes, count: int) -> Iterator[bytes]:
    chance = random.Random(len(data))
    for _ in range(count):
        yield data[: chance.randrange(len(data))]
        changed = bytearray(data)
        for _ in range(chance.choice((1, 1, 4))):
            changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        yield bytes(changed)
        start = chance.randrange(len(data))
        filling = chance.choice((b"\0", b"\xff", b"(", chance.randbytes(8)))
        length = chance.randrange(1, 64)
        yield data[:start] + (filling * length)[:length] + data[start + length :]


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize(
    ("make", "is_checked"),
    [(zipped, True), (legacy, False), (tensors, False), (hdf5, False)],
)
def test_damaged_files(tmp_path: Path, make: Callable[[], bytes], is_checked: bool) -> None:
    """Where a format has checksums, what loads is right; elsewhere a number may be another one."""
    file, loaded, refused = tmp_path / "a.pth", 0, 0
    model = nn.Linear(3, 4)
    for data in damages(make(), 60):
        file.write_bytes(data)
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        error = refusal(model, file)
        if error is not None:
            refused += 1
            assert "\n" not in str(error)
            assert is_equal(model.state_dict(), before)
        else:
            loaded += 1
            assert all(bool(t.isfinite().all()) for t in model.state_dict().values())
            assert not is_checked or is_equal(model.state_dict(), STATE)
    assert refused > 50
    assert loaded > 0


def refusal(model: nn.Module, file: Path) -> RefoldError | None:
    try:
        load_checkpoint(model, file)
    except RefoldError as error:
        return error
    return None


def is_equal(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(other[key], tensor) for key, tensor in state.items())
