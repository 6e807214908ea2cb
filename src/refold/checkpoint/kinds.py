"""Which tensors can be weights, and which may stand where a model has others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from refold.errors import CheckpointError

_SHOWN = 10
_NARROW = frozenset(
    getattr(torch, name)
    for name in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
)
_NUMBERS = frozenset(
    getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "complex128", "complex64", "bool"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
    )
)


def some(keys: list[str]) -> str:
    """Return the first names, and how many more there are."""
    rest = len(keys) - _SHOWN
    return ", ".join(keys[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def fault(tensor: Tensor) -> str | None:
    """Return why a tensor is not a plain array of numbers, and what to do about it."""
    if tensor.is_meta:
        return "a shape without values (meta); save a model whose weights are in memory"
    if tensor.is_quantized:
        return "quantized; save tensor.dequantize() of each"
    if tensor.is_nested:
        return "nested; save its parts one by one"
    if tensor.layout is not torch.strided:
        return f"sparse ({str(tensor.layout)[6:]}); save tensor.to_dense() of each"
    if tensor.dtype not in _NUMBERS | _NARROW:
        return f"{_name(tensor)}, which no layer computes with; save them as float32"
    return None


def settle(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return tensors as plain arrays of numbers, and what was done to them, in words.

    float8 is widened to float32, which keeps every value; torch can hardly compute with it.

    Raises:
        CheckpointError: when a tensor is quantized, sparse, nested, without values (meta), or of a
            type that packs several numbers into a byte.
    """
    faults: dict[str, list[str]] = {}
    for key, tensor in state.items():
        if (what := fault(tensor)) is not None:
            faults.setdefault(what, []).append(key)
    if faults:
        raise CheckpointError("; ".join(f"{some(keys)}: {what}" for what, keys in faults.items()))
    narrow = Counter(str(t.dtype)[6:] for t in state.values() if t.dtype in _NARROW)
    notes = tuple(f"widened {count} of {dtype} to float32" for dtype, count in narrow.items())
    return {key: _plain(tensor) for key, tensor in state.items()}, notes


def span(state: Mapping[str, Tensor]) -> int:
    """Return how many bytes are claimed by tensors larger than their own storage."""
    sizes = ((t.numel() * t.element_size(), t) for t in state.values() if not t.is_meta)
    dense = ((size, t) for size, t in sizes if t.layout is torch.strided and not t.is_nested)
    return sum(size for size, t in dense if size > t.untyped_storage().nbytes())


def misfit(tensor: Tensor, target: Tensor) -> str | None:
    """Return why a tensor may not be cast to the type of the tensor it replaces.

    Floats convert to floats of any width, with rounding. Everything else must keep its value:
    integers and booleans convert to each other where they are equal, and never to floats.
    """
    if target.is_floating_point():
        loses = not tensor.is_floating_point()
    elif target.is_complex():
        loses = not (tensor.is_floating_point() or tensor.is_complex())
    else:
        loses = tensor.is_complex() or not torch.equal(
            tensor.to(target.dtype).to(tensor.dtype), tensor
        )
    return f"{_name(tensor)} instead of {_name(target)}" if loses else None


def _plain(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().resolve_conj().resolve_neg()
    return (tensor.float() if tensor.dtype in _NARROW else tensor).contiguous()


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype)[6:]
