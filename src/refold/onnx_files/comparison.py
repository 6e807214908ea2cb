"""Two files compared on the same named arrays, each in the runtime that runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from refold.errors import InputError, one_line
from refold.exporting import (
    Sizes,
    onnx_sizes,
    openvino_model,
    openvino_sizes,
    require,
    size_text,
    takes,
)
from refold.onnx_files.proof import Trial, bound_of, examples, losses, unlike, worst
from refold.onnx_files.reading import OnnxFile, read
from refold.onnx_files.trials import Arrays, session, sized

Run = Callable[[Arrays], list[Any]]


def write_openvino(source: Path, output: Path) -> None:
    """Convert an .onnx file to OpenVINO's `.xml` and `.bin`.

    Raises:
        InputError: when OpenVINO cannot read it.
    """
    openvino = require("openvino", "openvino")
    try:
        converted = openvino.convert_model(source)
    except Exception as error:
        raise InputError(f"OpenVINO cannot read {source.name}: {one_line(error)}") from error
    converted.set_rt_info("", "conversion_parameters")
    openvino.serialize(converted, output, output.with_suffix(".bin"))


def compare(original: Path, other: Path, inputs: list[Arrays] | None = None) -> tuple[Trial, ...]:
    """Run an .onnx file and another, an .onnx or .xml, on the same inputs.

    Args:
        original: the .onnx file.
        other: what should be the same function.
        inputs: what to run them on; made up where nothing is given.

    Raises:
        InputError: when either cannot be run.
    """
    file = read(original)
    run, sizes = _opened(other)
    given = _shared(file, other, sizes) if inputs is None else inputs
    first = session(file.path)
    names = [value.name for value in file.model.graph.output]
    found = list[Trial]()
    for arrays, loss in zip(given, losses(file, given), strict=True):
        shapes = {name: list(array.shape) for name, array in arrays.items()}
        try:
            got = run(arrays)
        except Exception as error:
            raise InputError(f"{other} does not run on {shapes}: {one_line(error)}") from error
        wanted = first.run(names, arrays)
        bound, note = max(bound_of(file), loss), unlike(names, wanted, got)
        found.append(Trial(shapes, worst(wanted, got), bound, note))
    return tuple(found)


def _shared(file: OnnxFile, other: Path, sizes: Sizes) -> list[Arrays]:
    """Return inputs that a file takes and another, too.

    Args:
        file: what was read.
        other: the other file.
        sizes: what it takes.

    Raises:
        InputError: when there are none.
    """
    found = examples(file, None)
    fitting = [arrays for arrays in found if _fits(arrays, sizes)]
    if fitting:
        return fitting
    fixed = {name: [size or 1 for size in shape] for name, shape in sizes.items()}
    if fixed and set(fixed) == set(found[0]):
        shapes = [tuple(fixed[name][1:]) for name in found[0]]
        arrays = sized(file.model, shapes, next(iter(fixed.values()))[0], 0)
        if _fits(arrays, sizes):
            return [arrays]
    own = ", ".join(f"{name!r} {size_text(array.shape)}" for name, array in found[0].items())
    others = ", ".join(f"{name!r} {size_text(shape)}" for name, shape in sizes.items())
    raise InputError(
        f"{other} takes {others}, and {file.path} runs on {own}: they have no inputs in common, "
        "so they cannot be compared"
    )


def _fits(arrays: Arrays, sizes: Sizes) -> bool:
    return set(sizes) <= set(arrays) and all(
        takes(shape, arrays[name].shape) for name, shape in sizes.items()
    )


def inputs_for(file: OnnxFile, sizes: list[tuple[int, ...]], batch: int, seed: int) -> Arrays:
    """Return one set of inputs to time a file on.

    Args:
        file: what was read.
        sizes: of each input without the batch; where there is none its own fixed sizes, or others
            that it takes.
        batch: where the first axis is free.
        seed: of the numbers.

    Raises:
        InputError: when it does not run on them.
    """
    opened = session(file.path)
    fixed = {shape[0] for shape in onnx_sizes(opened).values() if shape} - {None}
    if batch > 1 and len(fixed) == 1 and fixed != {batch}:
        raise InputError(f"{file.path} fixes the batch to {fixed.pop()}, not {batch}")
    if not sizes:
        arrays = sized(file.model, [(3, 224, 224)], batch, seed)
        try:
            opened.run(None, arrays)
        except Exception:
            return examples(file, None)[-1]
        return arrays
    arrays = sized(file.model, sizes, batch, seed)
    for wanted, (name, array) in zip(sizes, arrays.items(), strict=False):
        if tuple(array.shape[1:]) != wanted:
            fixed, asked = ("x".join(map(str, s)) for s in (array.shape[1:], wanted))
            raise InputError(f"{file.path} fixes the size of {name!r} to {fixed}, not {asked}")
    try:
        opened.run(None, arrays)
    except Exception as error:
        shapes = ", ".join("x".join(map(str, array.shape)) for array in arrays.values())
        raise InputError(f"{file.path} does not run on {shapes}: {one_line(error)}") from error
    return arrays


def _opened(path: Path) -> tuple[Run, Sizes]:
    """Open a file in its runtime, and return what runs it and which sizes it takes.

    Raises:
        InputError: when that cannot.
    """
    try:
        if path.suffix.lower() == ".onnx":
            opened = session(path)
            return (lambda arrays: opened.run(None, arrays)), onnx_sizes(opened)
        compiled = openvino_model(path)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} cannot be opened: {one_line(error)}") from error

    def run(arrays: Arrays) -> list[Any]:
        results = compiled(arrays)
        return [results[port] for port in compiled.outputs]

    return run, openvino_sizes(compiled)
