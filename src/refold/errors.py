"""The one error tree: every message says where, what was got, what is required and what to do.

`assert` in this library means a defect of ours; whatever a user can cause raises a `RefoldError`.
"""

from __future__ import annotations


class RefoldError(Exception):
    """Base of every error that refold raises on purpose."""


class InputError(RefoldError, ValueError):
    """An argument, file, name or tensor the user gave cannot be used."""


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
    """A training run cannot go on: its loss is no number any more, or the disk is full."""


class DivergedError(TrainingError):
    """The loss of a training run is no number any more."""


class MissingDependencyError(RefoldError, ImportError):
    """An optional library is not installed; the message names the extra that brings it."""
