"""What a file is, told by its content: a name says little, and a download may hold anything."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path
from typing import Literal

from refold.errors import CheckpointError
from refold.torch_versions import PROGRAM_MEMBERS

Form = Literal["archive", "pickle", "safetensors", "hdf5"]

_HEAD = 2048
ARCHIVE = b"PK\x03\x04"
"""How a zip archive begins."""
_HDF5 = b"\x89HDF\r\n\x1a\n"
_LONGEST_HEADER = 100_000_000  # bytes, of a safetensors file
# A file may hold so many times its own size: zeros pack well, real weights hardly.
_RATIO, _ALWAYS_FINE = 100, 2**30

# How other files begin, what they are, and what to do about it.
_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs",
        "is a Git LFS pointer instead of the weights: run git lfs pull",
    ),
    (b"<!doctype html", "is a web page instead of the weights: download the file itself"),
    (b"<html", "is a web page instead of the weights: download the file itself"),
    (b"<?xml", "is an XML file, such as OpenVINO's graphs: give a file of weights"),
    (b"{", "is JSON text, such as the index of several files: give a file of weights"),
    (b"\x1f\x8b", "is compressed (gzip): unpack it first"),
    (b"bzh", "is compressed (bzip2): unpack it first"),
    (b"\xfd7zxz\x00", "is compressed (xz): unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed (zstd): unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "is compressed (7z): unpack it first"),
    (b"\x93numpy", "is a NumPy array: save a dict of tensors with torch.save"),
    (b"gguf", "is a GGUF file, which refold does not read: give safetensors"),
)
_ONNX = "is an ONNX model, a graph: give the weights that it was exported from"
_PROGRAM = "is a program of torch.export, not weights alone: give it as the MODEL"
_SCRIPT = (
    "is a TorchScript archive, a program: save the state_dict() of what torch.jit.load returns, "
    "and give that"
)
_TAR = "is a tar archive: unpack it, or save the state_dict it holds with torch.save"
_NUMPY = "is a NumPy archive: save a dict of tensors with torch.save"
_ZIP = "is a zip archive that torch.save did not write: unpack it first"
# What a zip archive holds that is of another kind: how such a member's name ends.
_FOREIGN_MEMBERS: tuple[tuple[str, str], ...] = (
    ("/constants.pkl", _SCRIPT),
    *((member, _PROGRAM) for member in PROGRAM_MEMBERS),
    (".npy", _NUMPY),
)


def recognise(file: Path) -> Form:
    """Return the kind of a checkpoint by its first bytes; what is unknown may be a pickle.

    Raises:
        CheckpointError: when the file is missing, empty, or plainly something else.
    """
    size = _size(file)
    try:
        with file.open("rb") as stream:
            head = stream.read(_HEAD)
    except OSError as error:
        raise _unopened(file, error) from error
    if not head:
        raise CheckpointError(f"checkpoint {file} is empty (0 bytes): copy or download it again")
    if head.startswith(_HDF5):
        return "hdf5"
    if head.startswith(ARCHIVE):
        return "archive"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= min(size, _LONGEST_HEADER):
        return "safetensors"
    begins = head.lstrip().lower()
    for sign, what in _FOREIGN:
        if begins.startswith(sign):
            raise CheckpointError(f"checkpoint {file} {what}")
    if head[0] == 8 and head[1:2] < b"\x40" and head[2:3] in (b"\x12", b"\x1a", b"\x3a", b"\x42"):
        raise CheckpointError(f"checkpoint {file} {_ONNX}")
    if head[257:262] == b"ustar":
        raise CheckpointError(f"checkpoint {file} {_TAR}")
    return "pickle"


def require_whole_archive(file: Path) -> None:
    """Refuse a zip archive that torch.save did not write, or that is damaged.

    Raises:
        CheckpointError: when it holds a program, a member is not as its checksum says, or it
            unpacks to far more than its size.
        Exception: what `zipfile` raises at junk.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        for end, what in _FOREIGN_MEMBERS:
            if any(name.endswith(end) for name in names):
                raise CheckpointError(f"checkpoint {file} {what}")
        if not any(name.endswith("/data.pkl") for name in names):
            raise CheckpointError(f"checkpoint {file} {_ZIP}")
        require_size(file, sum(member.file_size for member in members))
        if len(set(names)) < len(names):
            raise CheckpointError(
                f"checkpoint {file} is damaged: two members share a name; copy it again"
            )
        for member in members:
            if member.CRC:  # 0 where torch was told to compute no checksums
                _read_through(archive, member, file)


def require_size(file: Path, size: int) -> None:
    """Refuse a file that says it holds far more than it can.

    Raises:
        CheckpointError: when it would unpack to more than a hundred times its own size, and a GiB.
    """
    own = file.stat().st_size
    if size > max(_ALWAYS_FINE, _RATIO * own):
        raise CheckpointError(
            f"checkpoint {file} has {own:,} bytes but claims to hold {size:,}: it is damaged, or "
            "built to fill the memory; save the plain weights again"
        )


def _read_through(archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: Path) -> None:
    try:
        with archive.open(member) as stream:
            while stream.read(2**20):
                pass
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"checkpoint {file} is damaged: {member.filename} does not match its "
            "checksum; copy or download it again"
        ) from error


def _size(file: Path) -> int:
    try:
        found = file.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(
            f"checkpoint {file} does not exist; give a .pth or .safetensors file"
        ) from error
    except (OSError, ValueError) as error:  # a name too long, a loop of links, a null byte
        raise _unopened(file, error) from error
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "not a regular file"
        raise CheckpointError(f"checkpoint {file} is {what}; give a .pth or .safetensors file")
    return found.st_size


def _unopened(file: Path, error: OSError | ValueError) -> CheckpointError:
    reason = os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else ""
    return CheckpointError(
        f"checkpoint {file} cannot be opened ({reason or error}); give a .pth or .safetensors file"
    )
