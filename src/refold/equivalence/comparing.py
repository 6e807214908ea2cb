"""Compare what two models return, whatever containers they return it in."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

_NOTHING = 1e-12  # a result this small beside others of the same output is what rounding left


class IncomparableError(Exception):
    """Two outputs have no error in numbers: another structure, shape or type, or not finite."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Largest difference at one output, and the largest value of the reference there."""

    delta: float
    scale: float


def leaves(value: object, path: str = "output") -> Iterator[tuple[str, object]]:
    """Yield each leaf of nested tuples, lists, dicts and dataclasses with its path.

    Examples:
        >>> [path for path, _ in leaves({"boxes": (1, 2), "mask": 3})]
        ["output['boxes'][0]", "output['boxes'][1]", "output['mask']"]
    """
    children = _children(value)
    if not children:
        yield path, value
    for step, child in children:
        yield from leaves(child, path + step)


def tensor_leaves(value: object) -> list[Tensor]:
    """Return only the tensors among the leaves, in order."""
    return [leaf for _, leaf in leaves(value) if isinstance(leaf, Tensor)]


def tensor_paths(value: object) -> list[str]:
    """Return the paths of the tensors among the leaves, in order."""
    return [path for path, leaf in leaves(value) if isinstance(leaf, Tensor)]


def compare(reference: object, candidate: object) -> dict[str, Gap]:
    """Return the gap at each output path.

    Raises:
        IncomparableError: When structure, shape or type differ, or a value is not finite.
    """
    wanted, got = dict(leaves(reference)), dict(leaves(candidate))
    if wanted.keys() != got.keys():
        lost, new = sorted(wanted.keys() - got.keys()), sorted(got.keys() - wanted.keys())
        raise IncomparableError(
            f"the structure changed: lost {lost or 'nothing'}, new {new or 'none'}"
        )
    return {path: _gap(path, leaf, got[path]) for path, leaf in wanted.items()}


def relative_errors(trials: Sequence[Mapping[str, Gap]]) -> list[tuple[float, str]]:
    """Return for each trial the largest max|delta| / max|reference| and the output that has it.

    Where the reference is zero up to rounding of its other results (a network without bias on a
    zero input), its largest value over all trials stands in for the vanishing divisor.
    """
    scales: dict[str, float] = {}
    for gaps in trials:
        for path, gap in gaps.items():
            scales[path] = max(scales.get(path, 0.0), gap.scale)
    errors: list[tuple[float, str]] = []
    for gaps in trials:
        each = [(_relative(gap, scales[path]), path) for path, gap in gaps.items()]
        errors.append(max(each, key=lambda item: item[0]))
    return errors


def _relative(gap: Gap, largest: float) -> float:
    if gap.delta == 0.0:
        return 0.0
    divisor = gap.scale if gap.scale > _NOTHING * largest else largest
    return gap.delta / divisor if divisor else math.inf


def _children(value: object) -> list[tuple[str, object]]:
    if isinstance(value, Mapping):
        items = cast(Mapping[object, object], value).items()
        return [(f"[{key!r}]", child) for key, child in items]
    names = cast(tuple[str, ...] | None, getattr(value, "_fields", None))
    if isinstance(value, tuple) and names is not None:  # a named tuple
        return list(zip([f".{name}" for name in names], cast(tuple[object], value), strict=True))
    if isinstance(value, tuple | list):
        sequence = cast(list[object], value)
        return [(f"[{index}]", child) for index, child in enumerate(sequence)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = tuple(field.name for field in dataclasses.fields(value))
        return [(f".{name}", getattr(value, name)) for name in names]
    return []


def _gap(path: str, reference: object, candidate: object) -> Gap:
    if isinstance(reference, Tensor) and isinstance(candidate, Tensor):
        return _tensor_gap(path, reference, candidate)
    if isinstance(reference, int | float) and isinstance(candidate, int | float):
        return Gap(abs(candidate - reference), abs(reference))
    if type(reference) is not type(candidate) or isinstance(reference, Tensor):
        raise IncomparableError(
            f"{path} is {_describe(candidate)}, in the reference {_describe(reference)}"
        )
    if reference != candidate:
        raise IncomparableError(f"{path} is {candidate!r}, in the reference {reference!r}")
    return Gap(0.0, 0.0)


def _tensor_gap(path: str, reference: Tensor, candidate: Tensor) -> Gap:
    if reference.shape != candidate.shape:
        raise IncomparableError(
            f"{path} has shape {tuple(candidate.shape)}, in the reference {tuple(reference.shape)}"
        )
    if reference.numel() == 0:
        return Gap(0.0, 0.0)
    is_complex = reference.is_complex() or candidate.is_complex()
    wide = torch.complex128 if is_complex else torch.float64
    wanted = reference.to(wide)
    got = candidate.to(device=reference.device, dtype=wide)
    for tensor, owner in ((wanted, "reference"), (got, "candidate")):
        if not bool(torch.isfinite(tensor).all()):
            kind = "NaN" if bool(torch.isnan(tensor).any()) else "infinity"
            raise IncomparableError(f"{path} of the {owner} holds {kind}")
    return Gap(float((got - wanted).abs().max()), float(wanted.abs().max()))


def _describe(value: object) -> str:
    return f"a {type(value).__name__}"
