"""A file is what its content says, whatever its name; what is no checkpoint is called by its name.

Containers may not be endless, and an archive may not say more than it holds.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from refold.checkpoint import load_checkpoint, read_state_dict
from refold.errors import CheckpointError

STATE = {"weight": torch.linspace(-1, 1, 12).reshape(4, 3), "bias": torch.linspace(1, 2, 4)}


def pth(state: object = STATE, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(state, stream, **options)
    return stream.getvalue()


def rezipped(
    change: Callable[[str, bytes], bytes] = lambda _, data: data,
    compression: int = zipfile.ZIP_STORED,
    data: bytes | None = None,
) -> bytes:
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data or pth())) as old,
        zipfile.ZipFile(stream, "w", compression) as new,
    ):
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return stream.getvalue()


def hdf5() -> bytes:
    h5py = pytest.importorskip("h5py")
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        for key, tensor in STATE.items():
            file[key] = tensor.numpy()
    return stream.getvalue()


def refuse(tmp_path: Path, data: bytes, reason: str, name: str = "a.pth") -> None:
    file = tmp_path / name
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_state_dict(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("name", ["a.pth", "A.SAFETENSORS", "a.h5", "a.onnx", "a", "a.Bin"])
@pytest.mark.parametrize(
    "make",
    [
        pth,
        lambda: pth(_use_new_zipfile_serialization=False),
        lambda: rezipped(compression=zipfile.ZIP_DEFLATED),
        lambda: safetensors.torch.save(STATE),
        hdf5,
    ],
)
def test_the_content_counts(tmp_path: Path, make: Callable[[], bytes], name: str) -> None:
    file = tmp_path / name
    file.write_bytes(make())
    model = nn.Linear(3, 4)
    assert load_checkpoint(model, file).loaded == 2
    assert all(torch.equal(STATE[key], t) for key, t in model.state_dict().items())


def torchscript() -> bytes:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(3, 4)), stream)
    return stream.getvalue()


def program() -> bytes:
    stream = io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(3, 4), (torch.ones(1, 3),)), stream)
    return stream.getvalue()


def packed(name: str, data: bytes = b"data") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, data)
    return stream.getvalue()


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".h5"])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: b"", r"is empty \(0 bytes\)"),
        (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (lambda: b"\n <!DOCTYPE html><html>404</html>", "is a web page"),
        (lambda: b"<HTML><body>Sign in</body></HTML>", "is a web page"),
        (lambda: b'<?xml version="1.0"?><net/>', "is an XML file"),
        (lambda: b'{"metadata": {}, "weight_map": {}}', "is JSON text"),
        (lambda: b"\x1f\x8b\x08\x00data", r"compressed \(gzip\): unpack"),
        (lambda: b"BZh91AY&SY", r"compressed \(bzip2\)"),
        (lambda: b"\xfd7zXZ\x00data", r"compressed \(xz\)"),
        (lambda: b"\x28\xb5\x2f\xfddata", r"compressed \(zstd\)"),
        (lambda: b"7z\xbc\xaf\x27\x1cdata", r"compressed \(7z\)"),
        (lambda: b"GGUF\x03\x00", "is a GGUF file"),
        (lambda: b"\x93NUMPY\x01\x00", "is a NumPy array"),
        (lambda: bytes(257) + b"ustar" + bytes(250), "is a tar archive"),
        (lambda: b"\x08\x0a\x12\x07pytorch\x1a\x05", "is an ONNX model"),
        (torchscript, "is a TorchScript archive"),
        (program, "program of torch.export"),
        (lambda: packed("arr_0.npy"), "is a NumPy archive"),
        (lambda: packed("weights.pth", pth()), "zip archive that torch.save did not write"),
    ],
)
def test_what_a_file_is_instead(
    tmp_path: Path, make: Callable[[], bytes], reason: str, suffix: str
) -> None:
    refuse(tmp_path, make(), reason, f"a{suffix}")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none.pth", "does not exist"),
        ("a.pth/b.pth", "does not exist"),
        ("n" * 300, r"cannot be opened \(file name too long\)"),
        ("d/" * 3000, r"cannot be opened \(file name too long\)"),
        ("a\0b", r"cannot be opened \(embedded null"),
        ("loop", r"cannot be opened \(too many levels"),
        (".", "is a folder"),
        ("/dev/null", "is not a regular file"),
    ],
)
def test_what_is_no_file(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "a.pth").write_bytes(pth())
    with pytest.raises(CheckpointError, match=reason):
        read_state_dict(tmp_path / name)


def nested(depth: int, inner: str, opening: bytes, closing: bytes) -> bytes:
    """Return a pickle of containers in containers, deeper than pickle itself would write."""
    return b"\x80\x02" + opening * depth + inner.encode() + closing * depth + b"."


def ring(name: str) -> object:
    content: dict[str, object] = {"bias": STATE["bias"]}
    content[name] = content
    return content


def list_ring() -> object:
    content: list[object] = []
    content.append({"model": content})
    return content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (ring("model"), r"containers without end \(model"),
        (ring("state_dict"), "containers without end"),
        (list_ring(), "containers without end"),
        ({"model": {"ema": ring("module")}}, "containers without end"),
    ],
)
@pytest.mark.parametrize("is_legacy", [False, True])
def test_containers_that_hold_themselves(
    tmp_path: Path, content: object, reason: str, is_legacy: bool
) -> None:
    refuse(tmp_path, pth(content, _use_new_zipfile_serialization=not is_legacy), reason)


@pytest.mark.parametrize(
    ("opening", "inner", "closing", "reason"),
    [
        (b"}X\x05\x00\x00\x00model", "}", b"s", "containers without end"),
        (b"]", "N", b"a", "holds a list"),
        (b"}X\x01\x00\x00\x00k", "}", b"s", "not tensors: k"),
    ],
)
def test_ten_thousand_containers_deep(
    tmp_path: Path, opening: bytes, inner: str, closing: bytes, reason: str
) -> None:
    deep = nested(10_000, inner, opening, closing)
    data = rezipped(lambda name, data: deep if name.endswith("data.pkl") else data)
    refuse(tmp_path, data, reason)


def test_a_deep_json_header(tmp_path: Path) -> None:
    header = b'{"a":' * 10_000 + b"0" + b"}" * 10_000
    data = struct.pack("<Q", len(header)) + header
    refuse(tmp_path, data, "cannot be read", "a.safetensors")


@pytest.mark.slow
def test_breadth_costs_no_more_than_its_size(tmp_path: Path) -> None:
    one = torch.ones(1)
    wide: dict[str, Tensor] = {f"module.layer{index}.weight": one for index in range(20_000)}
    (tmp_path / "a.pth").write_bytes(pth(wide))
    assert len(read_state_dict(tmp_path / "a.pth")) == len(wide)
    refuse(tmp_path, pth(dict.fromkeys(range(20000), 0)), "and 19990 more")


def shortened(name: str, data: bytes) -> bytes:
    return data[: len(data) // 2] if name.endswith("data/0") else data


def test_a_tensor_longer_than_what_is_stored_reads_nothing_else(tmp_path: Path) -> None:
    big = pth({"weight": torch.ones(1000), "bias": torch.zeros(1000)})
    refuse(tmp_path, rezipped(shortened, data=big), "cannot be read")
    refuse(tmp_path, rezipped(shortened, zipfile.ZIP_DEFLATED, big), "cannot be read")


def test_every_flipped_bit_of_the_weights_is_noticed(tmp_path: Path) -> None:
    data = pth()
    place = data.index(STATE["weight"].numpy().tobytes())
    for offset in range(0, 48, 7):
        damaged = bytearray(data)
        damaged[place + offset] ^= 1
        refuse(tmp_path, bytes(damaged), "data/0 does not match its checksum")


def test_an_archive_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        (tmp_path / "a.pth").write_bytes(pth())
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_state_dict(tmp_path / "a.pth")["bias"], STATE["bias"])


def test_a_member_named_twice(tmp_path: Path) -> None:
    stream = io.BytesIO(pth())
    with zipfile.ZipFile(stream, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data/0", bytes(48))
    refuse(tmp_path, stream.getvalue(), "two members share a name")


def test_an_archive_that_unpacks_to_far_more(tmp_path: Path) -> None:
    data = bytearray(packed("archive/data.pkl"))
    entry = data.index(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = struct.pack("<I", 2**32 - 2)  # the size once unpacked
    refuse(tmp_path, bytes(data), r"claims to hold 4,294,967,294")


def test_a_plain_pickle_runs_nothing(tmp_path: Path) -> None:
    refuse(tmp_path, pickle.dumps(Path), r"holds pathlib\.Path, not a dict")
