"""Tensors of a file as torch's, and back; those outside it are mapped into memory, not loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refold.errors import InputError, one_line
from refold.exporting import require
from refold.onnx_files.reading import is_external

_DTYPES: dict[int, torch.dtype] = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}
LARGE = 1 << 24
"""Bytes of a tensor that are copied at a time."""
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_AS_INTEGERS = {torch.bfloat16: torch.int16}  # what numpy has no type for


def dtype_of(code: int) -> torch.dtype | None:
    """Return torch's type for one of ONNX's, None where torch has none."""
    return _DTYPES.get(code)


def is_floating(code: int | None) -> bool:
    """Say whether ONNX's code stands for a floating type that networks are folded in."""
    dtype = None if code is None else _DTYPES.get(code)
    return dtype is not None and dtype.is_floating_point


@dataclass(frozen=True)
class Place:
    """Where the numbers of a tensor outside the file lie."""

    path: Path
    offset: int
    length: int


def place_of(tensor: Any, folder: Path) -> Place:
    """Return where an external tensor lies.

    Raises:
        InputError: when that is outside the folder, or the file is not there or too short.
    """
    entries = {item.key: item.value for item in tensor.external_data}
    location = entries.get("location", "")
    path = Path(os.path.realpath(folder / location))
    home = Path(os.path.realpath(folder))
    if not location or Path(location).is_absolute() or not path.is_relative_to(home):
        raise InputError(
            f"the weights of {tensor.name!r} lie at {location!r}, outside the folder of the file: "
            "such a path is not followed"
        )
    try:
        offset, size = int(entries.get("offset", 0)), path.stat().st_size
        length = int(entries.get("length", size - offset))
    except (OSError, ValueError) as error:
        raise InputError(
            f"the weights of {tensor.name!r} should lie in {location!r}, which cannot be read: "
            f"{one_line(error)}"
        ) from error
    if offset < 0 or length < 0 or offset + length > size:
        raise InputError(
            f"the weights of {tensor.name!r} should end at byte {offset + length} of "
            f"{location!r}, which has {size}: the file is cut off"
        )
    return Place(path, offset, length)


def to_torch(tensor: Any, folder: Path) -> Tensor | None:
    """Return a tensor of the file, None where torch has no such type.

    Raises:
        InputError: when its bytes are not as many as its shape needs.
    """
    dtype = _DTYPES.get(tensor.data_type)
    if dtype is None:
        return None
    shape = tuple(tensor.dims)
    check_size(tensor, folder)
    if is_external(tensor):
        return _mapped(place_of(tensor, folder), dtype).reshape(shape)
    if tensor.HasField("raw_data"):
        if not tensor.raw_data:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(bytearray(tensor.raw_data), dtype=dtype).reshape(shape)
    numpy_helper = require("onnx.numpy_helper", "onnx")
    array = numpy_helper.to_array(tensor)
    if dtype in _AS_INTEGERS:
        return torch.from_numpy(array.astype("float32").copy()).to(dtype)
    return torch.from_numpy(array.copy())


def check_size(tensor: Any, folder: Path) -> None:
    """Refuse a tensor whose shape and numbers do not fit together.

    Raises:
        InputError: naming it.
    """
    dtype, shape = _DTYPES.get(tensor.data_type), tuple(tensor.dims)
    if dtype is None:
        return
    if any(size < 0 for size in shape):
        raise InputError(f"the weights of {tensor.name!r} have a negative size: {shape}")
    if is_external(tensor):
        got, wanted = place_of(tensor, folder).length, prod(shape) * dtype.itemsize
    elif tensor.HasField("raw_data"):
        got, wanted = len(tensor.raw_data), prod(shape) * dtype.itemsize
    else:
        got, wanted = _listed(tensor), prod(shape)
    if got != wanted:
        raise InputError(
            f"the weights of {tensor.name!r} of shape {shape} need {wanted} bytes or numbers, "
            f"but there are {got}: the file is damaged"
        )


def _listed(tensor: Any) -> int:
    fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data)
    return max(map(len, (*fields, tensor.uint64_data)))


def _mapped(place: Place, dtype: torch.dtype) -> Tensor:
    """Return a tensor that reads the file as it is needed; a write stays in memory."""
    if not place.length:
        return torch.empty(0, dtype=dtype)
    numpy = require("numpy", "onnx")
    window = numpy.memmap(place.path, "uint8", "c", place.offset, (place.length,))
    data = torch.from_numpy(window)
    aligned = data.data_ptr() % dtype.itemsize == 0
    return (data if aligned else data.clone()).view(dtype)


def to_proto(tensor: Tensor, name: str) -> Any:
    """Return a tensor in ONNX's form, its numbers inside."""
    proto = header(tensor, name)
    proto.raw_data = b"".join(pieces(tensor))
    return proto


def header(tensor: Tensor, name: str) -> Any:
    """Return a tensor in ONNX's form without its numbers."""
    onnx = require("onnx", "onnx")
    return onnx.TensorProto(name=name, data_type=_CODES[tensor.dtype], dims=list(tensor.shape))


def pieces(tensor: Tensor) -> Iterator[bytes]:
    """Yield the bytes of a tensor, some rows at a time where it is large."""
    plain = tensor.detach().cpu()
    plain = plain.contiguous() if plain.nbytes <= LARGE or not plain.ndim else plain
    rows = max(1, LARGE * len(plain) // plain.nbytes) if plain.ndim and plain.nbytes else 1
    for start in range(0, len(plain) if plain.ndim else 1, rows):
        part = plain[start : start + rows].contiguous() if plain.ndim else plain
        part = part.view(_AS_INTEGERS[part.dtype]) if part.dtype in _AS_INTEGERS else part
        yield part.numpy().tobytes()


def code_of(dtype: torch.dtype) -> int:
    """Return ONNX's code of a type."""
    return _CODES[dtype]
