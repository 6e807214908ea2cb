"""The sizes that a file takes, once a runtime has opened it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from refold.exporting.formats.executorch import Loaded

Sizes = Mapping[str, tuple[int | None, ...]]
"""The shape of each input in order; None is any size."""


def onnx_sizes(session: Any) -> Sizes:
    """Return what a file takes that is open in ONNX Runtime."""
    found = {node.name: node.shape or () for node in session.get_inputs()}
    return {
        name: tuple(size if isinstance(size, int) else None for size in shape)
        for name, shape in found.items()
    }


def openvino_sizes(compiled: Any) -> Sizes:
    """Return what a compiled model takes; an input of any number of axes is left out."""
    ports = [port for port in compiled.inputs if not port.partial_shape.rank.is_dynamic]
    return {
        port.get_any_name(): tuple(
            size.get_length() if size.is_static else None for size in port.partial_shape
        )
        for port in ports
    }


def executorch_sizes(loaded: Loaded) -> Sizes:
    """Return what a loaded forward takes."""
    about = loaded.method.metadata
    return {
        f"input{at}": tuple(about.input_tensor_meta(at).sizes()) for at in range(about.num_inputs())
    }


def litert_sizes(opened: Any) -> Sizes:
    """Return what an open file takes."""
    return {
        row["name"]: tuple(None if size < 0 else int(size) for size in row["shape_signature"])
        for row in opened.get_input_details()
    }


def size_text(shape: Sequence[int | None]) -> str:
    """Return a shape in words.

    >>> size_text((None, 3, 16, 16))
    'any x 3 x 16 x 16'
    """
    return " x ".join("any" if size is None else str(size) for size in shape)


def takes(sizes: Sequence[int | None], shape: Sequence[int]) -> bool:
    """Say whether an input of these sizes may have a shape.

    >>> takes((None, 3, 16, 16), (2, 3, 16, 16)), takes((1, 3, 16, 16), (2, 3, 16, 16))
    (True, False)
    """
    return len(sizes) == len(shape) and all(
        size in (None, given) for size, given in zip(sizes, shape, strict=True)
    )
