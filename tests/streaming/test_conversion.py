"""A fold from file to file gives the same bits as one in memory, and holds one region at a time.

Oracle: the weights loaded, folded and saved in memory, bit for bit; in memory the fold is compared
with the network in float64 elsewhere.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils._python_dispatch import TorchDispatchMode

import refold
from helpers.traps import live, net
from refold.blocks import RepVGGBlock
from refold.checkpoint import load_checkpoint, read_state_dict
from refold.engine import slices
from refold.engine.outside import kept_outside
from refold.errors import CheckpointError, InputError, RefusedError
from refold.streaming import conversion, fold_checkpoint, without_weights, write_shards

pytestmark = pytest.mark.slow

WIDTH = 32
KERNEL = 4 * 9 * WIDTH**2
X = torch.randn(1, WIDTH, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat kernels of a few kilobytes as large ones are treated."""
    monkeypatch.setattr(conversion, "kept_outside", partial(kept_outside, least=KERNEL // 16))
    monkeypatch.setattr(conversion, "without_weights", partial(without_weights, least=1024))
    monkeypatch.setattr(slices, "_WORTH_IT", WIDTH**2)
    monkeypatch.setattr(slices, "_PER_SLICE", WIDTH**2)


def blocks(count: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(RepVGGBlock(WIDTH, WIDTH, 3, padding=1) for _ in range(count))).eval()


def tied() -> nn.Module:
    """One kernel under two names, whose norm stays, and a norm that is folded."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(),
        nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(WIDTH, WIDTH, 3),
        nn.BatchNorm2d(WIDTH),
    )
    model[3].weight = model[0].weight
    return model.eval()


def computed() -> nn.Module:
    """A kernel that is computed at every call, and a table that no file holds."""
    torch.manual_seed(0)
    model = net(
        lambda self, x: self.n(self.c(x)) * self.table,
        c=weight_norm(nn.Conv2d(WIDTH, WIDTH, 3)),
        n=nn.BatchNorm2d(WIDTH),
    )
    model.register_buffer("table", torch.linspace(1, 2, WIDTH).reshape(-1, 1, 1), persistent=False)
    return model.eval()


def grouped() -> nn.Module:
    """A grouped kernel and a transposed one: neither is folded slice by slice."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(WIDTH, 4 * WIDTH, 3, groups=2, bias=False),
        nn.BatchNorm2d(4 * WIDTH),
        nn.ReLU(),
        nn.ConvTranspose2d(4 * WIDTH, WIDTH, 2, 2),
        nn.BatchNorm2d(WIDTH),
    ).eval()


def written(make: Callable[[], nn.Module], folder: Path, dtype: torch.dtype) -> nn.Module:
    """Write a network's weights in several files, and return it."""
    model = live(make()).to(dtype)
    files = write_shards(model.state_dict(), folder / "in", shard_bytes=KERNEL)
    assert len(files) > 2
    return model


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("make", [blocks, tied, computed, grouped])
def test_the_same_bits_as_in_memory(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = written(make, tmp_path, torch.float32)
    done = fold_checkpoint(make, tmp_path / "in", tmp_path / "out", X, shard_bytes=KERNEL)
    folded = refold.reparameterize(model, X)
    assert same(folded.state_dict(), read_state_dict(tmp_path / "out"))
    assert [step.where for step in done.steps] == [s.where for s in refold.plan(model, X).steps]
    assert done.steps
    assert done.error is not None
    assert done.error < 1e-5
    load_checkpoint(folded, tmp_path / "out")
    assert not list(tmp_path.glob(".refold-*"))


def test_half_precision_is_proven_in_double(tmp_path: Path) -> None:
    model = written(blocks, tmp_path, torch.bfloat16)
    x = X.bfloat16()
    done = fold_checkpoint(lambda: blocks().bfloat16(), tmp_path / "in", tmp_path / "out", x)
    assert same(refold.reparameterize(model, x).state_dict(), read_state_dict(tmp_path / "out"))
    assert done.steps
    # The file's numbers become the model's: the same network built in float32 takes them too.
    wide = fold_checkpoint(blocks, tmp_path / "in", tmp_path / "wide.safetensors", X)
    assert [file.name for file in wide.files] == ["wide.safetensors"]
    assert same(
        refold.reparameterize(model.float(), X).state_dict(), read_state_dict(wide.files[0])
    )


def test_a_fold_that_differs_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: where a fold is wrong, comparing in float64 finds it."""
    written(blocks, tmp_path, torch.float32)
    fold = conversion.fold_model

    def spoiled(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        done = fold(model, *args, **kwargs)
        with torch.no_grad():
            done.model[0].rbr_reparam.weight *= 1.01
        return done

    monkeypatch.setattr(conversion, "fold_model", spoiled)
    with pytest.raises(RefusedError, match="differs on the example"):
        fold_checkpoint(blocks, tmp_path / "in", tmp_path / "out", X)
    assert not (tmp_path / "out").exists()


# memory, counted and not sampled


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors that are alive at once, those in mapped files left out."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, Tensor) and not tensor.is_meta and tensor.nbytes > 4096:
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or is_in_a_file(storage.data_ptr()):
            return
        self._known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def is_in_a_file(address: int) -> bool:
    """Say whether memory belongs to a mapped file, as the system tells it."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, inode, *_ = line.split()
        low, high = (int(end, 16) for end in span.split("-"))
        if low <= address < high:
            return inode != "0"
    return False


def peak(count: int, folder: Path, in_memory: bool = False) -> int:
    """Return the most bytes alive while a chain of blocks is folded."""
    folder = folder / f"{count} {in_memory}"
    folder.mkdir()
    written(lambda: blocks(count), folder, torch.float32)
    with Alive() as alive:
        if in_memory:
            model = blocks(count)
            load_checkpoint(model, folder / "in")
            refold.reparameterize(model, X, inplace=True)
        else:
            fold_checkpoint(lambda: blocks(count), folder / "in", folder / "out", X)
    return alive.most


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell what is mapped")
def test_memory_does_not_grow_with_the_network(tmp_path: Path) -> None:
    few, many = peak(2, tmp_path), peak(6, tmp_path)
    assert many <= 1.05 * few
    assert many <= 4 * KERNEL  # the largest kernel, and work on it
    assert peak(6, tmp_path, in_memory=True) > 12 * KERNEL  # what is counted can grow


# bad input


def test_a_missing_or_damaged_file_is_one_message(tmp_path: Path) -> None:
    written(blocks, tmp_path, torch.float32)
    shard = sorted((tmp_path / "in").glob("*-00002-of-*"))[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=r"00002-of-.*truncated"):
        fold_checkpoint(blocks, tmp_path / "in", tmp_path / "out", X)
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"lists .*00002-of-.*, which is not beside it"):
        fold_checkpoint(blocks, tmp_path / "in", tmp_path / "out", X)
    assert [place.name for place in tmp_path.iterdir()] == ["in"]


def test_a_full_disk_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not an entry of the account for each fold, and not the end of the process."""
    written(blocks, tmp_path, torch.float32)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("refold.engine.outside._reserve", full)
        with pytest.raises(InputError, match=r"no room for the new weights .*no space left"):
            fold_checkpoint(blocks, tmp_path / "in", tmp_path / "out", X)
    monkeypatch.setattr("refold.streaming.shards._compare", full)
    with pytest.raises(InputError, match=r"cannot write .*no space left"):
        fold_checkpoint(blocks, tmp_path / "in", tmp_path / "out", X)
    assert [place.name for place in tmp_path.iterdir()] == ["in"]


def test_a_network_that_needs_its_numbers_says_so(tmp_path: Path) -> None:
    written(blocks, tmp_path, torch.float32)

    def asks() -> nn.Module:
        model = blocks()
        model.total = float(model[0].rbr_dense.conv.weight.sum())
        return model

    with pytest.raises(InputError, match="without the numbers of its weights"):
        fold_checkpoint(asks, tmp_path / "in", tmp_path / "out", X)
    with pytest.raises(RefusedError, match="training mode"):
        fold_checkpoint(lambda: blocks().train(), tmp_path / "in", tmp_path / "out", X)
    with pytest.raises(InputError, match=r"what make returns must be a torch\.nn\.Module"):
        fold_checkpoint(lambda: 3, tmp_path / "in", tmp_path / "out", X)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="make must be a function"):
        fold_checkpoint(blocks(), tmp_path / "in", tmp_path / "out", X)
    with pytest.raises(InputError, match="shard_bytes must be a positive"):
        fold_checkpoint(blocks, tmp_path / "in", tmp_path / "out", X, shard_bytes=0)


def test_other_files_and_weights_are_refused(tmp_path: Path) -> None:
    torch.save(blocks().state_dict(), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        fold_checkpoint(blocks, tmp_path / "a.pth", tmp_path / "out")
    write_shards(blocks(3).state_dict(), tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="unexpected"):
        fold_checkpoint(blocks, tmp_path / "b.safetensors", tmp_path / "out")
    with pytest.raises(InputError, match=r"safetensors, not .*net\.onnx"):
        fold_checkpoint(blocks, tmp_path / "b.safetensors", tmp_path / "net.onnx")
    with pytest.raises(InputError, match="would replace the file that is read"):
        fold_checkpoint(blocks, tmp_path / "b.safetensors", tmp_path / "b.safetensors")
