"""Safetensors written tensor by tensor: one file, or several and the index of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor

from refold.checkpoint import is_index, shards_of
from refold.errors import CheckpointError, ExportError, InputError
from refold.files import atomic_path

SHARD_BYTES = 5 * 10**9
"""Of weights in one file, as Hugging Face's libraries write them."""
INDEX = "model.safetensors.index.json"
_ENDING = ".safetensors.index.json"
_PIECE = 1 << 24  # bytes written at a time
_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL", torch.complex64: "C64",
}  # fmt: skip


def target_of(output: Path) -> Path:
    """Return the file that is written last: a `.safetensors`, or the index in a folder.

    Raises:
        InputError: when the name is of another kind.

    Examples:
        >>> target_of(Path("out")).name, target_of(Path("net.safetensors")).name
        ('model.safetensors.index.json', 'net.safetensors')
    """
    if output.name.endswith((_ENDING, ".safetensors")):
        return output
    if output.suffix and not output.is_dir():
        raise InputError(
            f"weights that are streamed become safetensors, not {output}: give a folder, or a name "
            f"that ends in .safetensors or {_ENDING}"
        )
    return output / INDEX


def write_shards(
    state: Mapping[str, Tensor],
    output: str | os.PathLike[str],
    *,
    shard_bytes: int = SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
) -> tuple[Path, ...]:
    """Write tensors by name, all of the files or none, with little memory; return the files.

    The index comes last. Shards of an index that is replaced go with it. What was written is read
    back and compared.

    Args:
        state: the tensors; those of one storage are written once for each name.
        output: a `.safetensors` file, a `.safetensors.index.json`, or a folder, whose index is
            called as Hugging Face's libraries call it.
        shard_bytes: of weights in one of several files.
        metadata: what each file says of itself.

    Raises:
        InputError: when a place cannot be written, or the format does not know a type.
        ExportError: when a file reads back with other values.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     state = {"a": torch.ones(4), "b": torch.ones(4)}
        ...     files = write_shards(state, Path(name), shard_bytes=16)
        >>> [file.name for file in files][1:]
        ['model-00002-of-00002.safetensors', 'model.safetensors.index.json']
    """
    target = target_of(Path(output))
    for name, tensor in state.items():
        if tensor.dtype not in _NAMES:
            raise InputError(
                f"{name} cannot be written to {target}: safetensors have no {tensor.dtype}"
            )
    about = {"format": "pt", **(metadata or {})}
    if target.name.endswith(".safetensors"):
        with atomic_path(target) as temporary:
            _write(state, temporary, about)
        return (target,)
    parts = _parted(state, shard_bytes)
    stem = target.name.removesuffix(_ENDING)
    names = [f"{stem}-{n:05}-of-{len(parts):05}.safetensors" for n in range(1, len(parts) + 1)]
    with atomic_path(target, beside=_replaced(target)) as temporary:
        for name, part in zip(names, parts, strict=True):
            _write(part, temporary.with_name(name), about)
        temporary.write_text(json.dumps(_index(names, parts), indent=2) + "\n")
    return (*(target.with_name(name) for name in names), target)


def _parted(state: Mapping[str, Tensor], shard_bytes: int) -> list[dict[str, Tensor]]:
    """Return the tensors in order, parted where the next one does not fit."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in state.items():
        if parts[-1] and size + tensor.nbytes > shard_bytes:
            parts.append({})
            size = 0
        parts[-1][name] = tensor
        size += tensor.nbytes
    return parts


def _index(names: list[str], parts: list[dict[str, Tensor]]) -> dict[str, Any]:
    places = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    size = sum(tensor.nbytes for part in parts for tensor in part.values())
    return {"metadata": {"total_size": size}, "weight_map": places}


def _replaced(target: Path) -> list[str]:
    """Return the names of the files that an index which is there already lists."""
    if not is_index(target):
        return []
    try:
        return [shard.name for shard in shards_of(target)]
    except CheckpointError:  # whatever it is, it goes
        return []


def _write(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write one file, and read it back. Wide types come first, so that all are aligned."""
    order = sorted(state, key=lambda name: (-state[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        tensor, start = state[name], end
        end += tensor.nbytes
        entry = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape)}
        header[name] = entry | {"data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            for piece in _pieces(state[name]):
                stream.write(cast(Any, piece.numpy()))
    _compare(state, order, path, 8 + len(text))


def _compare(state: Mapping[str, Tensor], order: list[str], path: Path, start: int) -> None:
    """Read a file back: what safetensors make of its header, and the bytes after it."""
    with safe_open(path, framework="np") as stored, path.open("rb") as stream:
        stream.seek(start)
        for name in order:
            tensor, told = state[name], stored.get_slice(name)
            same = told.get_shape() == list(tensor.shape)
            same = same and told.get_dtype() == _NAMES[tensor.dtype]
            for piece in _pieces(tensor):
                same = same and stream.read(piece.numel()) == piece.numpy().tobytes()
            if not same:
                raise ExportError(f"{name} reads back from {path.name} with other values")


def _pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the bytes of a tensor, some at a time."""
    plain = tensor.detach().cpu().contiguous()
    return plain.reshape(-1).view(torch.uint8).split(_PIECE) if plain.numel() else ()
