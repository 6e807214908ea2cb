"""Prove that two models compute the same function, in float64, or say where they do not."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from refold.equivalence.comparing import Gap, IncomparableError, compare, relative_errors
from refold.equivalence.copies import copy_model, is_norm, require_eval, run_wide, widen
from refold.equivalence.rounding import (
    Conditioning,
    Rounding,
    depth,
    native_dtype,
    native_rounding,
    rounding_bound,
)
from refold.equivalence.trials import trial_inputs
from refold.errors import NotEquivalentError, one_line
from refold.inputs import Arguments, required, unrunnable

TOLERANCE = 1e-9
_NATIVE_TRIALS = 2  # the example and the random input: rounding needs no more

_VACUOUS = (
    "every norm of the reference still has its initial statistics (mean 0, variance 1, weight 1, "
    "bias 0), so this check proves nothing about norms: load trained weights or randomise them"
)


@dataclass(frozen=True, slots=True)
class Trial:
    """What one input showed: the worst output, its error and bound, or why there is no number."""

    name: str
    error: float
    bound: float
    output: str = ""
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Result of `verify`: true when both models compute the same function on every trial.

    `max_rel_error` is the largest max|delta| / max|reference| over outputs and trials, in
    float64; infinite when outputs could not be compared. `native` tells what the models' own
    precision adds. `vacuous` warns that untrained norms would hide mistakes.
    """

    max_rel_error: float
    tolerance: float
    dtype: str
    trials: tuple[Trial, ...]
    native: Rounding
    vacuous: bool
    failure: str | None = None

    def __bool__(self) -> bool:
        """Whether the models are equal within the tolerance and the native bound."""
        return self.failure is None

    def check(self) -> Equivalence:
        """Return self when equal.

        Raises:
            NotEquivalentError: Otherwise; it names the input, the output and the error.
        """
        if self.failure is not None:
            raise NotEquivalentError(f"the candidate differs from the reference: {self.failure}")
        return self

    def __str__(self) -> str:
        """Say the verdict, the errors with their bounds, and any warning, a line each."""
        native = self.native
        verdict = "equal" if self else f"not equal: {self.failure}"
        lines = [
            f"{verdict}",
            f"largest relative error {self.max_rel_error:.2g} in {self.dtype} "
            f"(tolerance {self.tolerance:.2g}, {len(self.trials)} inputs)",
        ]
        if native.error is None:
            lines.append(f"native precision: {native.note}")
        else:
            lines.append(
                f"native {native.dtype}: error {native.error:.2g}, the reference itself "
                f"{native.reference_error or 0.0:.2g} (bound {native.bound:.2g})"
            )
        if self.vacuous:
            lines.append(f"warning: {_VACUOUS}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; what is not finite becomes None."""
        return {
            **asdict(self),
            "equal": bool(self),
            "max_rel_error": _finite(self.max_rel_error),
            "native": {**asdict(self.native), "error": _finite(self.native.error)},
            "trials": [{**asdict(trial), "error": _finite(trial.error)} for trial in self.trials],
        }


def verify(reference: nn.Module, candidate: nn.Module, example_inputs: Any) -> Equivalence:
    """Compare two models in float64 on the example, random, constant and impulse inputs.

    Float64 copies run, so that rounding cannot hide a mistake. Weights that were rounded to a
    lower precision stay rounded in the copy: the tolerance is then what one rounding of each
    weight may cause (`rounding_bound`), or, on an input where that is exceeded, what it does
    cause in the reference. For the sharp 1e-9, fold and verify `model.double()`.
    Neither model is changed.

    Args:
        reference: The model that is right by definition, in eval mode.
        candidate: The model that should equal it, in eval mode.
        example_inputs: A tensor, a tuple or list of arguments, or a mapping of them by name; other
            inputs are made in these shapes.

    Raises:
        RefusedError: When a model is in training mode.
        InputError: When the reference cannot run on the example.

    Examples:
        >>> import torch
        >>> conv = nn.Conv2d(3, 4, 3).eval()
        >>> bool(verify(conv, nn.Sequential(conv, nn.Identity()).eval(), torch.zeros(1, 3, 8, 8)))
        True
    """
    example = required(reference, example_inputs)
    require_eval(reference, "the reference")
    require_eval(candidate, "the candidate")
    wide_reference, wide_candidate = copy_model(reference, widen), copy_model(candidate, widen)
    inputs = dict(trial_inputs(example))
    try:
        run_wide(wide_reference, inputs["example"])
    except Exception as error:
        raise unrunnable(reference, example, error) from error
    trials = _run_trials(wide_reference, wide_candidate, inputs)
    dtype = native_dtype(reference, candidate) or torch.float64
    tolerance = max(TOLERANCE, rounding_bound(dtype, depth(reference, candidate)))
    conditioning = Conditioning(wide_reference, dtype)
    trials = tuple(_bound(t, conditioning, inputs[t.name], tolerance) for t in trials)
    tolerance = max(trial.bound for trial in trials)
    few = list(inputs.values())[:_NATIVE_TRIALS]
    native = native_rounding(reference, candidate, wide_reference, few, tolerance)
    return Equivalence(
        max_rel_error=max(trial.error for trial in trials),
        tolerance=tolerance,
        dtype="float64",
        trials=trials,
        native=native,
        vacuous=is_untrained(reference),
        failure=_nondeterminism(wide_reference, few[-1]) or _first_failure(trials, native),
    )


def _run_trials(
    reference: nn.Module, candidate: nn.Module, inputs: dict[str, Arguments]
) -> tuple[Trial, ...]:
    measured: dict[str, dict[str, Gap]] = {}
    found: dict[str, Trial] = {}
    for name, values in inputs.items():
        try:
            measured[name] = _gaps(reference, candidate, values)
        except IncomparableError as problem:
            found[name] = Trial(name, math.inf, TOLERANCE, failure=str(problem))
    errors = dict(zip(measured, relative_errors(list(measured.values())), strict=True))
    for name, (error, output) in errors.items():
        found[name] = Trial(name, error, TOLERANCE, output)
    return tuple(found[name] for name in inputs)


def _bound(trial: Trial, conditioning: Conditioning, inputs: Arguments, tolerance: float) -> Trial:
    if trial.failure is None and trial.error > tolerance and conditioning.dtype != torch.float64:
        tolerance = max(tolerance, conditioning.bound(inputs))
    return replace(trial, bound=tolerance)


def _gaps(reference: nn.Module, candidate: nn.Module, inputs: Arguments) -> dict[str, Gap]:
    outputs: list[object] = []
    for owner, model in (("reference", reference), ("candidate", candidate)):
        try:
            outputs.append(run_wide(model, inputs))
        except Exception as error:  # any error of a stranger's forward pass is a finding here
            cause = f"{type(error).__name__}: {one_line(error)}"
            raise IncomparableError(f"the {owner} raised {cause}") from error
    return compare(*outputs)


def _first_failure(trials: tuple[Trial, ...], native: Rounding) -> str | None:
    for trial in trials:
        if trial.failure is not None:
            return f"on input '{trial.name}' {trial.failure}"
    worst = max(trials, key=lambda trial: trial.error / trial.bound)
    if worst.error > worst.bound:
        return (
            f"on input '{worst.name}' {worst.output} differs by {worst.error:.2g} relative to the "
            f"reference, more than {worst.bound:.2g}"
        )
    if native.is_within:
        return None
    return native.note or f"{native.dtype} rounding {native.error:.2g} exceeds {native.bound:.2g}"


def _nondeterminism(reference: nn.Module, inputs: Arguments) -> str | None:
    try:
        gaps = compare(run_wide(reference, inputs), run_wide(reference, inputs))
    except Exception:  # the trials report it with its cause
        return None
    error, output = relative_errors([gaps])[0]
    if error <= TOLERANCE:
        return None
    return f"the reference is not deterministic: two runs differ by {error:.2g} at {output}"


def is_untrained(model: nn.Module) -> bool:
    """Say whether a model has norms, and all of them still have their initial statistics."""
    norms = [module for module in model.modules() if is_norm(module)]
    return bool(norms) and all(map(_is_initial, norms))


def _is_initial(norm: nn.Module) -> bool:
    # A weight of 0 is also an initial one: residual branches often start switched off.
    allowed = {"running_mean": (0.0,), "running_var": (1.0,), "weight": (1.0, 0.0), "bias": (0.0,)}
    for name, values in allowed.items():
        tensor = getattr(norm, name, None)
        if isinstance(tensor, Tensor) and not any(bool((tensor == v).all()) for v in values):
            return False
    return True


def _finite(error: float | None) -> float | None:
    return error if error is not None and math.isfinite(error) else None
