"""Run a file in ONNX Runtime, its optimisations off, on random inputs of several sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, product
from math import prod
from pathlib import Path
from typing import Any

from refold.errors import InputError, one_line
from refold.exporting import require
from refold.files import is_text
from refold.onnx_files.reading import OnnxFile
from refold.onnx_files.sizes import free_sizes

Arrays = dict[str, Any]
Shapes = Mapping[str, tuple[int | str, ...]]
_BATCHES = (1, 2, 3, 5)
_SIDES = (64, 96, 224, 320, 32, 48, 512, 576, 640, 16, 24, 8, 1, 2, 4, 128, 256)
_VOLUMES = (16, 24, *(side for side in _SIDES if side not in (16, 24)))  # 64^3 takes long to sum
_TRIES = 24
_MOST = 1 << 27  # numbers that one input may have
_ERRORS_ONLY = 3
_MAP = 4  # dimensions of a batch of images
_BELOW = 8  # what whole numbers are drawn from
_FRACTIONS = frozenset({1, 10, 11, 16})  # ONNX's floating types


def session(source: Path | bytes, *, optimised: bool = False) -> Any:
    """Open a file or a serialized model."""
    import torch

    onnxruntime = require("onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY + 1
    options.intra_op_num_threads = torch.get_num_threads()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    )
    given = source if isinstance(source, bytes) else str(source)
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def open_original(file: OnnxFile) -> Any:
    """Open a file as it is.

    Raises:
        InputError: when ONNX Runtime cannot.
    """
    try:
        return session(file.path)
    except Exception as error:
        reason = one_line(error).replace(str(file.path), file.path.name)
        if not is_text(file.path):
            reason = "it takes no name that is not UTF-8; rename the file"
        raise InputError(
            f"{file.path}: ONNX Runtime cannot open it, so no fold of it could be checked: {reason}"
        ) from error


def feeds(model: Any, run: Any, seed: int = 0) -> list[Arrays]:
    """Return inputs that a session takes, of two sizes of each free axis where it takes two.

    Args:
        model: the ModelProto.
        run: runs it on named arrays.
        seed: of the numbers.

    Raises:
        InputError: when it takes none that could be made up.
    """
    _check_sizes(model)
    failure = ""
    for shapes in _guesses(free_sizes(model)):
        found, reason = _tried(model, shapes, run, seed)
        if found:
            return found
        failure = failure or reason
    raise InputError(
        f"it runs on none of the inputs made up for it ({failure}): give refold.fold_onnx "
        "example_inputs, a mapping of input names to arrays"
    )


def _guesses(shapes: Shapes) -> Iterator[Shapes]:
    """Yield the shapes, and these with the channels of images that weights fix and they do not."""
    yield shapes
    for axis, count in product((1, 3), (3, 1)):
        maps = (shape[axis] for shape in shapes.values() if len(shape) == _MAP)
        free = {size for size in maps if isinstance(size, str)}
        if free:
            yield {
                name: tuple(count if size in free else size for size in shape)
                for name, shape in shapes.items()
            }


def _tried(model: Any, shapes: Shapes, run: Any, seed: int) -> tuple[list[Arrays], str]:
    """Return up to two inputs that a session takes, and why it took none of the others."""
    found, failure = list[Arrays](), ""
    last: dict[str, int] = {}
    for at, (sizes, below) in enumerate(product(_choices(shapes), _limits(model))):
        if found and any(last[name] == size for name, size in sizes.items()):
            continue
        try:
            arrays = _arrays(model, shapes, sizes, seed + at, below)
            run(arrays)
        except Exception as error:  # of sizes or indices that the network does not take
            failure = failure or one_line(error)
            continue
        found.append(arrays)
        last = sizes
        if len(found) == 2 or not sizes:
            break
    return found, failure


def _limits(model: Any) -> tuple[int, ...]:
    """Return what whole numbers are to stay below: they may be indices of a table of two rows."""
    kinds = {value.type.tensor_type.elem_type for value in model.graph.input}
    return (_BELOW, 2) if kinds - _FRACTIONS else (_BELOW,)


def _check_sizes(model: Any) -> None:
    """Refuse a file that fixes a size to 0: it computes nothing that could be compared.

    Raises:
        InputError: naming the input.
    """
    for value in model.graph.input:
        sizes = value.type.tensor_type.shape.dim
        if any(size.HasField("dim_value") and size.dim_value == 0 for size in sizes):
            raise InputError(
                f"its input {value.name!r} has a size that is fixed to 0, so it computes nothing "
                "that could be compared: give that axis a size or a name, or leave the check out "
                "(check=False)"
            )


def sized(model: Any, sizes: list[tuple[int, ...]], batch: int, seed: int) -> Arrays:
    """Return random inputs of these sizes; fixed axes stay as the file fixes them.

    Args:
        model: the ModelProto.
        sizes: of each input in turn without its first axis, the last one for all that follow.
        batch: of first axes that are free.
        seed: of the numbers.
    """
    shapes = free_sizes(model)
    numbers: dict[str, int] = {}
    for at, shape in enumerate(shapes.values()):
        wanted = (batch, *sizes[min(at, len(sizes) - 1)])
        for axis, size in enumerate(shape):
            if isinstance(size, str):
                numbers.setdefault(size, wanted[axis] if axis < len(wanted) else wanted[-1])
    return _arrays(model, shapes, numbers, seed)


def _choices(shapes: Shapes) -> Iterator[dict[str, int]]:
    """Yield numbers for the free sizes: batches are small, sides are many."""
    batches, sides = list[str](), list[str]()
    for shape in shapes.values():
        for axis, size in enumerate(shape):
            if isinstance(size, str) and size not in (*batches, *sides):
                (sides if axis else batches).append(size)
    if not batches and not sides:
        yield {}
        return
    many = _VOLUMES if any(len(shape) > _MAP for shape in shapes.values()) else _SIDES
    for at, side in zip(range(_TRIES), many, strict=False):
        batch = _BATCHES[at % 2]
        other = many[(at + 1) % len(many)] if side >= 16 and at % 4 < 2 else side
        numbers = [side, other]
        yield dict.fromkeys(batches, batch) | {s: numbers[i % 2] for i, s in enumerate(sides)}
    for batch, side in product(_BATCHES[:2], many):
        yield dict.fromkeys(batches, batch) | dict.fromkeys(sides, side)
    last = {shape[-1] for shape in shapes.values() if shape}
    for batch, side in product(_BATCHES[:2], many):  # sequences: all but the last axis are few
        yield {name: side if name in last else batch for name in (*batches, *sides)}


def _arrays(
    model: Any,
    shapes: Shapes,
    sizes: dict[str, int],
    seed: int,
    below: int = _BELOW,
) -> Arrays:
    numpy = require("numpy", "onnx")
    onnx = require("onnx", "onnx")
    draw = numpy.random.default_rng(seed)
    found: Arrays = {}
    for value in model.graph.input:
        if value.name not in shapes:
            continue
        shape = tuple(sizes[s] if isinstance(s, str) else s for s in shapes[value.name])
        if prod(shape) > _MOST:
            raise InputError(f"its input {value.name!r} of {shape} is too large to try")
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        found[value.name] = _drawn(numpy, draw, shape, numpy.dtype(kind), below)
    return found


def _drawn(numpy: Any, draw: Any, shape: tuple[int, ...], kind: Any, below: int) -> Any:
    if kind.kind == "b":
        return draw.integers(0, 2, shape).astype(bool)
    if kind.kind in "iu":
        return numpy.asarray(draw.integers(0, below, shape)).astype(kind)
    return numpy.asarray(draw.standard_normal(shape)).astype(kind)


def names_of(model: Any) -> list[str]:
    """Return the names of the values that the nodes of a model make, in order."""
    return list(chain.from_iterable(filter(None, node.output) for node in model.graph.node))
