"""The one error tree: every message says where, what was got, what is required and what to do.

`assert` in this library means a defect of ours; whatever a user can cause raises a `RefoldError`.
"""

from __future__ import annotations

from collections.abc import Sequence


class RefoldError(Exception):
    """Base of every error that refold raises on purpose."""


class InputError(RefoldError, ValueError):
    """An argument, file, name or tensor that the user gave cannot be used."""


class CheckpointError(InputError):
    """A checkpoint is junk, unsafe, truncated, or does not fit the model."""


class GeometryError(RefoldError, ValueError):
    """Kernel, stride, padding, dilation, groups or channels do not fit together."""


class NotAffineError(RefoldError, TypeError):
    """A module or call is not an affine map, so it has no operator."""


class RefusedError(RefoldError, ValueError):
    """A fold would not be exact, safe or wanted; the message gives the reason."""


class NotEquivalentError(RefoldError):
    """Two models that should be equal are not; the message carries the largest error."""


class RuleLoopError(RefoldError, RuntimeError):
    """A rule did not lower the measure it must lower: a defect in that rule."""


class ExportError(RefoldError, RuntimeError):
    """A model could not be exported, or the exported file does not compute the same function."""


class TrainingError(RefoldError, RuntimeError):
    """A training run cannot continue: its loss became NaN or infinite, or the disk is full."""


class DivergedError(TrainingError):
    """The loss of a training run became NaN or infinite."""


class MissingDependencyError(RefoldError, ImportError):
    """An optional library is not installed; the message names the extra that brings it."""


def one_line(error: BaseException) -> str:
    r"""Return the first line of any error, else its kind: enough to quote in one of ours.

    Examples:
        >>> one_line(ValueError("no such size\nmore")), one_line(KeyError())
        ('no such size', 'KeyError')
    """
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # a stranger's __str__ may fail, too
        lines = []
    return (lines or [type(error).__name__])[0][:300]


def require_kind(what: str, value: object, kinds: type | tuple[type, ...], wanted: str) -> None:
    """Refuse an argument of another type, before Python stumbles over it somewhere inside.

    Args:
        what: the argument's name.
        value: what was given.
        kinds: the types that it may have; a bool is no number.
        wanted: what it must be, in words.

    Raises:
        InputError: if it has another.

    Examples:
        >>> require_kind("ratio", "0.5", (int, float), "a number")
        Traceback (most recent call last):
        refold.errors.InputError: ratio must be a number, got '0.5'
    """
    if isinstance(value, kinds) and not isinstance(value, bool):
        return
    plain = value is None or isinstance(value, str | int | float)
    raise InputError(
        f"{what} must be {wanted}, got {value!r}"
        if plain
        else (f"{what} must be {wanted}, got {type(value).__name__}")
    )


_MEMORY = ("can't allocate memory", "out of memory", "unable to allocate", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that there was not enough memory; libraries have no type for it.

    Examples:
        >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
        True
    """
    text = one_line(error).lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in _MEMORY)


def cannot_run(name: str, values: Sequence[object], error: Exception) -> InputError:
    """Return the error that says what a model failed on, and how.

    Args:
        name: of the model.
        values: what it was called with; those with a shape are named by it.
        error: what the model raised.

    Examples:
        >>> str(cannot_run("Net", [3], ValueError("too few")))
        'Net cannot run on example_inputs of shape int: too few; give inputs that it accepts'
    """
    shapes = [getattr(value, "shape", None) for value in values]
    said = ", ".join(
        type(value).__name__ if shape is None else str(tuple(shape))
        for value, shape in zip(values, shapes, strict=True)
    )
    return InputError(
        f"{name} cannot run on example_inputs of shape {said}: {one_line(error)}; "
        "give inputs that it accepts"
    )
