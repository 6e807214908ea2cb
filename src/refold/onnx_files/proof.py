"""Is the folded file the same function? Both run in ONNX Runtime, and rounding is measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from math import isfinite, prod
from pathlib import Path
from typing import Any

import torch

from refold.equivalence import rounding_bound
from refold.errors import InputError, NotEquivalentError, one_line
from refold.exporting import require, size_text
from refold.onnx_files.reading import DEFAULT, OnnxFile, read, title
from refold.onnx_files.saving import has_weights_outside, tensors
from refold.onnx_files.tensors import is_floating, to_proto, to_torch
from refold.onnx_files.trials import Arrays, feeds, names_of, open_original, session

_OWN_LOSS = 8.0
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"})
_SUMS = frozenset({"GlobalAveragePool", "ReduceMean", "ReduceSum"})
_LIMIT = 1_500_000_000  # bytes of a file that is also run with moved weights


@dataclass(frozen=True)
class Trial:
    """One run of both files.

    Args:
        shapes: of the inputs.
        error: max|difference| / max|reference| of the worst output.
        bound: what rounding may cost here.
        note: why the outputs cannot be compared, where they cannot.
    """

    shapes: dict[str, list[int]]
    error: float
    bound: float
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; a NaN or infinite error becomes None."""
        return asdict(self) | {"error": self.error if isfinite(self.error) else None}


def examples(file: OnnxFile, given: Mapping[str, Any] | None) -> list[Arrays]:
    """Return inputs to compare on, those given or made up.

    Raises:
        InputError: when the file runs on none of them.
    """
    opened = open_original(file)
    if given is None:
        try:
            return feeds(file.model, partial(opened.run, None))
        except InputError as error:
            raise InputError(f"{file.path}: {error}") from error
    numpy = require("numpy", "onnx")
    arrays = {name: numpy.asarray(value) for name, value in given.items()}
    try:
        opened.run(None, arrays)
    except Exception as error:
        raise InputError(
            f"{file.path} does not run on the example_inputs given: {one_line(error)}"
        ) from error
    return [arrays]


def prove(
    original: OnnxFile, candidate: Path, inputs: list[Arrays], made: set[str]
) -> tuple[Trial, ...]:
    """Compare two files on the same inputs, at their outputs and wherever a fold ends.

    Args:
        original: what was read.
        candidate: the folded file.
        inputs: of both.
        made: the values that new nodes make.

    Raises:
        NotEquivalentError: when they differ by more than rounding; names the first node that does.
    """
    outputs = [value.name for value in original.model.graph.output]
    names = outputs + [n for n in names_of(original.model) if n in made and n not in outputs]
    if _is_large(original):
        names = outputs
    first, moved = watched(original, names), _moved(original, names)
    try:
        second = watched(read(candidate), names)
    except Exception as error:
        raise NotEquivalentError(
            f"ONNX Runtime cannot open the folded file: {one_line(error)} "
            "(this is a defect of refold; please report it). Nothing was written"
        ) from error
    return tuple(_trial(original, names, (first, second, moved), arrays) for arrays in inputs)


def _trial(
    original: OnnxFile, names: list[str], runs: tuple[Any, Any, Any], arrays: Arrays
) -> Trial:
    first, second, moved = runs
    wanted, got = first.run(names, arrays), second.run(names, arrays)
    errors = [_difference(a, b) for a, b in zip(wanted, got, strict=True)]
    bounds = [bound_of(original)] * len(names)
    if moved is not None:
        losses = map(_difference, wanted, moved.run(names, arrays))
        bounds = [max(b, _OWN_LOSS * loss) for b, loss in zip(bounds, losses, strict=True)]
    wrong = [at for at in range(len(names)) if not errors[at] <= bounds[at]]
    if wrong and (longest := _longest_sum(original, arrays)) > 1:
        bounds = [max(bound, bound_of(original, longest)) for bound in bounds]
        wrong = [at for at in wrong if not errors[at] <= bounds[at]]
    if wrong and not _is_random(first, names, wanted, arrays, bounds):
        order = {name: at for at, name in enumerate(names_of(original.model))}
        first_wrong = min(wrong, key=lambda at: order.get(names[at], 0))
        value = names[first_wrong]
        if not _is_finite(wanted[first_wrong]):
            raise InputError(
                f"{original.path}: its own value {value!r} is infinite or NaN on the inputs "
                "tried, so the folded file cannot be compared with it: give example_inputs, or a "
                "file with sound weights"
            )
        raise NotEquivalentError(_reason(original, value, errors[first_wrong], bounds[first_wrong]))
    count = len(original.model.graph.output)
    worst = max(range(count), key=lambda at: errors[at] / bounds[at])
    return Trial({n: list(a.shape) for n, a in arrays.items()}, errors[worst], bounds[worst])


def _is_random(
    session: Any, names: list[str], wanted: list[Any], arrays: Arrays, bounds: list[float]
) -> bool:
    """Say whether the file draws random numbers: two runs of it differ."""
    again = session.run(names, arrays)
    rows = zip(wanted, again, bounds, strict=True)
    return any(not _difference(one, other) <= bound for one, other, bound in rows)


def _is_finite(value: Any) -> bool:
    numpy = require("numpy", "onnx")
    array = numpy.asarray(value)
    return array.dtype.kind != "f" or bool(numpy.isfinite(array).all())


def _reason(original: OnnxFile, value: str, error: float, bound: float) -> str:
    maker = next((node for node in original.nodes if value in node.output), None)
    where = "an input" if maker is None else f"the {maker.op_type} {title(maker)!r}"
    return (
        f"the folded file differs from {original.path.name} first at {where}, in {value!r}: by "
        f"{error:.1e}, where rounding explains {bound:.1e} "
        "(this is a defect of refold; please report it). Nothing was written"
    )


def _longest_sum(file: OnnxFile, arrays: Arrays) -> int:
    """Return how many numbers the pools of whole maps sum up on these inputs, at most."""
    if _is_large(file):
        return 1
    pools = [node for node in file.nodes if node.op_type in _SUMS and node.domain in DEFAULT]
    made = set(names_of(file.model)).union(arrays)
    pairs = [(node.input[0], node.output[0]) for node in pools if node.input[0] in made]
    if not pairs:
        return 1
    names = list(dict.fromkeys(chain.from_iterable(pairs)))
    asked = [name for name in names if name not in arrays]
    values = dict(zip(asked, watched(file, asked).run(asked, arrays), strict=True)) | arrays
    return max(values[one].size // max(1, values[other].size) for one, other in pairs)


def bound_of(file: OnnxFile, longest: int = 1) -> float:
    """Return what rounding may cost the layers of a file in general.

    Args:
        file: what was read.
        longest: a sum that it is known to make.
    """
    depth = sum(node.op_type in _LAYERS for node in file.nodes)
    lengths = [longest, *(_reduction(tensor) for tensor in _kernels(file))]
    return rounding_bound(_precision(file), depth, max(lengths))


def _precision(file: OnnxFile) -> torch.dtype:
    """Return the least precise of the types that many weights, or the outputs, have."""
    half = {10: torch.float16, 16: torch.bfloat16}
    codes = {tensor.data_type for tensor in _kernels(file)}
    codes.update(value.type.tensor_type.elem_type for value in file.model.graph.output)
    found = [half[code] for code in codes if code in half]
    return max(found, key=lambda d: torch.finfo(d).eps, default=torch.float32)


def _kernels(file: OnnxFile) -> Iterator[Any]:
    return (t for t in tensors(file.model.graph) if len(t.dims) > 1 and is_floating(t.data_type))


def _reduction(tensor: Any) -> int:
    """Return how many products a kernel (O, I, *taps) or a matrix sums up."""
    if len(tensor.dims) == 2:
        return max(tensor.dims)
    return prod(tensor.dims) // max(1, tensor.dims[0])


def _is_large(file: OnnxFile) -> bool:
    """Say whether a file is only run whole: it is too large to be copied, or lies in parts."""
    inside = file.model.ByteSize() <= _LIMIT
    return not inside or has_weights_outside(file)


def _moved(file: OnnxFile, names: list[str]) -> Any:
    """Open the file with each kernel moved by at most one rounding; None where it is too large.

    What that changes is what the file makes of rounding, where it is ill-conditioned.
    """
    if _is_large(file):
        return None
    copied = type(file.model)()
    copied.CopyFrom(file.model)
    signs = torch.Generator().manual_seed(0)
    for tensor in tensors(copied.graph):
        values = to_torch(tensor, file.folder) if len(tensor.dims) > 1 else None
        if values is None or not values.is_floating_point():
            continue
        up = torch.randint(2, values.shape, generator=signs) - 0.5
        step = 1 + up.double() * torch.finfo(values.dtype).eps
        tensor.CopyFrom(to_proto((values.double() * step).to(values.dtype), tensor.name))
    try:
        return watched(OnnxFile(file.path, copied, file.opset), names)
    except Exception:  # then the general bound is all there is
        return None


def worst(wanted: list[Any], got: list[Any]) -> float:
    """Return the largest error of several outputs, max|difference| / max|reference|."""
    if len(wanted) != len(got):
        return float("inf")
    return max((_difference(a, b) for a, b in zip(wanted, got, strict=True)), default=0.0)


def unlike(names: list[str], wanted: list[Any], got: list[Any]) -> str:
    """Return how the outputs of two files differ in number, shape or type; nothing where alike.

    Args:
        names: of the outputs.
        wanted: those of the original.
        got: those of the other.
    """
    if len(wanted) != len(got):
        return f"it has {len(got)} outputs instead of {len(wanted)}"
    for name, one, other in zip(names, wanted, got, strict=True):
        shapes = [getattr(value, "shape", None) for value in (one, other)]
        types = [getattr(value, "dtype", type(value).__name__) for value in (one, other)]
        for first, second in (shapes, types):
            if first != second:
                return f"its output {name!r} is {_said(second)} instead of {_said(first)}"
    return ""


def _said(value: Any) -> str:
    return size_text(value) or "one number" if isinstance(value, tuple) else str(value)


def losses(file: OnnxFile, inputs: list[Arrays]) -> list[float]:
    """Return, for each of several inputs, what rounding may cost this file on it."""
    names = [value.name for value in file.model.graph.output]
    moved = _moved(file, names)
    if moved is None:
        return [0.0] * len(inputs)
    first = session(file.path)
    return [_OWN_LOSS * worst(first.run(names, a), moved.run(names, a)) for a in inputs]


def _difference(wanted: Any, got: Any) -> float:
    """Return max|difference| / max|reference|, infinite where what is not finite differs."""
    numpy = require("numpy", "onnx")
    if isinstance(wanted, list) or isinstance(got, list):  # a sequence, or maps of a classifier
        return 0.0 if str(wanted) == str(got) else float("inf")
    one, other = numpy.asarray(wanted), numpy.asarray(got)
    if one.shape != other.shape or one.dtype != other.dtype:
        return float("inf")
    if one.dtype.kind not in "fiu" or not one.size:
        return 0.0 if numpy.array_equal(one, other) else float("inf")
    one, other = one.astype("float64"), other.astype("float64")
    finite = numpy.isfinite(one)
    same = numpy.array_equal(finite, numpy.isfinite(other)) and numpy.array_equal(
        one[~finite], other[~finite], equal_nan=True
    )
    if not same:
        return float("inf")
    delta = float(numpy.abs(one[finite] - other[finite]).max(initial=0.0))
    scale = float(numpy.abs(one[finite]).max(initial=0.0))
    return 0.0 if not delta else delta / scale if scale else float("inf")


def watched(file: OnnxFile, names: list[str]) -> Any:
    """Open a file so that these values can be asked for."""
    if _is_large(file):
        return session(file.path)
    model = type(file.model)()
    model.CopyFrom(file.model)
    known = {value.name for value in model.graph.output}
    for name in names:
        if name not in known:
            model.graph.output.add(name=name)
    return session(model.SerializeToString())
