"""An HDF5 file is read alone: nothing in it can name another file of the machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from refold.checkpoint import read_state_dict
from refold.errors import CheckpointError

h5py = pytest.importorskip("h5py")
VALUES = np.linspace(-1, 1, 12, dtype="f4").reshape(3, 4)


def external(file: Any, folder: Path) -> None:
    file.create_dataset("w", (12,), "f4", external=[(str(folder / "secret"), 0, 48)])


def external_beside(file: Any, folder: Path) -> None:
    del folder
    file.create_dataset("w", (12,), "f4", external=[("secret", 0, h5py.h5f.UNLIMITED)])


def virtual(file: Any, folder: Path) -> None:
    layout = h5py.VirtualLayout((3, 4), "f4")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "w", (3, 4))
    file.create_virtual_dataset("w", layout)


def external_link(file: Any, folder: Path) -> None:
    file["w"] = h5py.ExternalLink(str(folder / "other.h5"), "w")


def link_through_a_group(file: Any, folder: Path) -> None:
    file["inner/there"] = h5py.ExternalLink(str(folder / "other.h5"), "/")
    file["w"] = h5py.SoftLink("/inner/there/w")


def soft_link(file: Any, folder: Path) -> None:
    del folder
    file["w"] = h5py.SoftLink("/v")


def own_group(file: Any, folder: Path) -> None:
    del folder
    file["inner/self"] = file.create_group("inner/more")
    file["inner/more/again"] = file["inner"]


def diamonds(file: Any, folder: Path) -> None:
    """Lay 2^40 paths with 80 links."""
    del folder
    group = file
    for _ in range(40):
        inner = group.create_group("a")
        group["b"] = inner
        group = inner


def never_written(file: Any, folder: Path) -> None:
    del folder
    file.create_dataset("w", (3, 4), "f4", chunks=(3, 4))


def bomb(file: Any, folder: Path) -> None:
    del folder
    grown = file.create_dataset("w", (10**6, 10**6), "f4", chunks=(1000, 10), compression="gzip")
    grown[0, 0] = 1


def bomb_of_chunks(file: Any, folder: Path) -> None:
    del folder
    size = (2**14, 2**14)
    grown = file.create_dataset("w", (1, 1), "f8", chunks=size, maxshape=size, compression="gzip")
    grown.id.write_direct_chunk((0, 0), b"never unpacked")


def of_type(dtype: Any, value: Any) -> Callable[[Any, Path], None]:
    return lambda file, folder: file.create_dataset("w", (2,), dtype).__setitem__(0, value)


def reference(file: Any, folder: Path) -> None:
    del folder
    file.create_dataset("w", (1,), h5py.ref_dtype)[0] = file["v"].ref


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (external, "'w' of .* lies in another file"),
        (external_beside, "lies in another file"),
        (virtual, "lies in another file"),
        (external_link, "'w' of .* is a link"),
        (link_through_a_group, "is a link"),
        (soft_link, "is a link"),
        (own_group, "appears twice, or contains itself"),
        (diamonds, "appears twice"),
        (never_written, "values were never written"),
        (bomb, "claims to hold 4,000,000,000,0"),
        (bomb_of_chunks, "claims to hold 2,147,483,6"),
        (of_type(h5py.string_dtype(), "a"), "holds object, not an array of numbers"),
        (of_type("S4", b"a"), "not an array of numbers"),
        (of_type("c8", 1j), "not an array of numbers"),
        (of_type([("a", "f4")], (1,)), "not an array of numbers"),
        (of_type(h5py.vlen_dtype(np.float32), [1.0]), "not an array of numbers"),
        (of_type("V4", np.void(b"abcd")), "not an array of numbers"),
        (of_type(np.longdouble, 1), "holds float128, not an array"),
        (reference, "holds object"),
        (
            lambda file, _: file.create_dataset("w", data=h5py.Empty("f4")),
            "not an array of numbers",
        ),
    ],
)
def test_what_is_no_array_of_this_file(
    tmp_path: Path, write: Callable[[Any, Path], None], reason: str, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_bytes(b"\x3f" * 48)
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["w"] = VALUES
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["v"] = VALUES
        write(file, tmp_path)
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_state_dict(tmp_path / "a.h5")
    assert "\n" not in str(caught.value)


def test_groups_types_and_attributes(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["keras_version"] = "2"
        file["stage/block/w"] = VALUES.astype(">f4")
        file["stage/block/w"].attrs["other"] = file["stage"].ref
        file["half"] = VALUES.astype("f2")
        file["count"] = np.int64(5)
        file["empty"] = np.zeros((0, 3), "f4")
        file["flags"] = VALUES > 0
        file["packed"] = VALUES
        file.create_dataset("small", data=VALUES, compression="gzip", fletcher32=True)
        file["same"] = file["packed"]  # one array under two names
        file["type"] = np.dtype("f4")
    state = read_state_dict(tmp_path / "a.h5")
    whole = torch.from_numpy(VALUES)
    names = "count empty flags half packed same small stage.block.w"
    assert sorted(state) == names.split()
    for name in ("packed", "same", "small", "stage.block.w"):
        assert torch.equal(state[name], whole)
    assert torch.equal(state["half"], whole.half())
    assert torch.equal(state["flags"], whole > 0)
    assert (state["count"].item(), state["empty"].shape) == (5, (0, 3))


def test_two_arrays_of_one_name(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a/b"] = VALUES
        file["a.b"] = VALUES + 1
    with pytest.raises(CheckpointError, match=r"two datasets of .* are called 'a\.b'"):
        read_state_dict(tmp_path / "a.h5")
