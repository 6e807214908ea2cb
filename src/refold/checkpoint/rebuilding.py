"""Tensors out of pickled calls that would make them: storages, views of them, NumPy arrays.

The functions stand in for those of torch and NumPy that a checkpoint names; see `inert`. They take
what a stranger's file gives them, check it, and make plain tensors of bytes that the file holds.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refold.checkpoint.pickle_reader import Name, Rebuilders, Thing

_STORED = {
    **{"FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16},
    **{"BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32},
    **{"ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8},
    **{"BoolStorage": torch.bool, "ComplexFloatStorage": torch.complex64},
    **{"ComplexDoubleStorage": torch.complex128, "UntypedStorage": torch.uint8},
}
_DTYPES = {name: found for name, found in vars(torch).items() if isinstance(found, torch.dtype)}
_MODULES = ("torch", "torch.cuda", "torch.storage")
_NUMBERS = re.compile(r"[fiubc]\d+|b1|\?")  # how NumPy writes types of plain numbers
_RECONSTRUCT = tuple(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core"))


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes of a file, and the type of the numbers that they are."""

    data: Tensor
    dtype: torch.dtype


def stored_dtype(kind: object) -> torch.dtype | None:
    """Return the type of the numbers in a class of storages; None where they are not plain."""
    if isinstance(kind, Name) and kind.module in _MODULES:
        return _STORED.get(kind.name)
    return None


def rebuilders(from_bytes: Callable[[io.BytesIO], Any]) -> Rebuilders:
    """Return our functions by the names of those they stand in for.

    Args:
        from_bytes: reads a file within the file, where plain pickle keeps a storage.
    """

    def load(data: bytes) -> Any:
        return from_bytes(io.BytesIO(data))

    table: dict[str, Callable[..., Any]] = {
        "collections.OrderedDict": _dict,
        "collections.defaultdict": lambda *_: {},
        "torch.Size": _first,
        "torch.storage._load_from_bytes": load,
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _typed_tensor,
        "torch._utils._rebuild_parameter": _first,
        "torch._utils._rebuild_parameter_with_state": _first,
        "_codecs.encode": _encoded,
    }
    for module in ("builtins", "__builtin__"):  # the second is Python 2's, and protocol 2's
        table |= {f"{module}.dict": _dict, f"{module}.set": _set, f"{module}.frozenset": _set}
    for core in ("core", "_core"):
        table[f"numpy.{core}.numeric._frombuffer"] = _from_buffer

    def from_type(function: object, kind: object, arguments: Any, state: object) -> Any:
        """Return a tensor of a subclass as a plain one."""
        inner = table.get(str(function)) if isinstance(function, Name) else None
        return NotImplemented if inner is None else inner(*arguments)

    table["torch._tensor._rebuild_from_type_v2"] = from_type
    return table


def as_tensor(value: object) -> Tensor | None:
    """Return a tensor, or a pickled NumPy array of numbers as one; None for anything else."""
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, Thing) or value.kind not in _RECONSTRUCT:
        return None
    if not isinstance(value.state, tuple) or len(value.state) != 5:
        return None
    _, shape, dtype, is_fortran, data = value.state
    try:
        return _array(data, dtype, shape, "F" if is_fortran else "C")
    except (TypeError, ValueError):  # it holds other bytes than it says
        return None


def is_array(value: object) -> bool:
    """Say whether this is a pickled NumPy array."""
    return isinstance(value, Thing) and value.kind in _RECONSTRUCT


def _dict(pairs: Any = (), *_: Any) -> Any:
    made: dict[Any, Any] = {}
    for key, value in pairs.items() if isinstance(pairs, dict) else pairs:
        if isinstance(key, str):
            made[key] = value
    return made


def _set(items: Any = ()) -> Thing:
    """Return a set without asking its items for a hash, which can take for ever."""
    return Thing("builtins.set", items=list(items))


def _first(value: Any = (), *_: Any) -> Any:
    return value


def _encoded(text: Any, encoding: Any = "latin1") -> Any:
    """Return the bytes that protocol 2, which has none, writes as text."""
    return text.encode("latin-1") if encoding in ("latin1", "latin-1") else NotImplemented


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any = False,
    hooks: Any = None, metadata: Any = None,
) -> Any:  # fmt: skip
    if metadata or not isinstance(storage, Storage):  # a view that is conjugate or negative
        return NotImplemented
    return _viewed(storage.data, storage.dtype, offset, size, stride)


def _typed_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, dtype: Any,
    metadata: Any = None,
) -> Any:  # fmt: skip
    known = _DTYPES.get(dtype.name) if isinstance(dtype, Name) else None
    if metadata or known is None or not isinstance(storage, Storage):
        return NotImplemented
    return _viewed(storage.data, known, offset, size, stride)


def _viewed(data: Tensor, dtype: torch.dtype, offset: Any, size: Any, stride: Any) -> Tensor:
    numbers = [offset, *size, *stride]
    if len(size) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError("a tensor's offset, size and stride do not fit each other")
    whole = data[: len(data) - len(data) % dtype.itemsize].view(dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) and last >= len(whole):
        raise ValueError("a tensor is longer than what is stored")
    return whole.as_strided(size, stride, offset if math.prod(size) else 0)


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> Any:
    found = _array(data, dtype, shape, order)
    return NotImplemented if found is None else found


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> Tensor | None:
    code = dtype.arguments[0] if isinstance(dtype, Thing) and dtype.arguments else None
    if not isinstance(code, str) or not _NUMBERS.fullmatch(code):
        return None
    state = dtype.state if isinstance(dtype, Thing) else None
    is_big = isinstance(state, tuple) and len(state) > 1 and state[1] == ">"
    kind = np.dtype(code).newbyteorder(">" if is_big else "<")
    raw = data.encode("latin-1") if isinstance(data, str) else bytes(data)
    flat = np.frombuffer(raw, kind).astype(kind.newbyteorder("="))
    return torch.from_numpy(flat.reshape(shape, order="F" if order == "F" else "C"))
