"""Whether two models compute the same function: copies, trials, comparison, rounding, proof."""

from __future__ import annotations

from refold.equivalence.comparing import (
    IncomparableError,
    compare,
    relative_errors,
    tensor_leaves,
    tensor_paths,
)
from refold.equivalence.copies import cast_floats, cast_inputs, in_float64, prepared, run, run_wide
from refold.equivalence.proof import Proof, prove
from refold.equivalence.rounding import (
    native_bound,
    native_dtype,
    own_loss,
    rounding_bound,
    runtime_rounding,
)
from refold.equivalence.verifying import TOLERANCE, Equivalence, is_untrained, verify

__all__ = [
    "TOLERANCE",
    "Equivalence",
    "IncomparableError",
    "Proof",
    "cast_floats",
    "cast_inputs",
    "compare",
    "in_float64",
    "is_untrained",
    "native_bound",
    "native_dtype",
    "own_loss",
    "prepared",
    "prove",
    "relative_errors",
    "rounding_bound",
    "run",
    "run_wide",
    "runtime_rounding",
    "tensor_leaves",
    "tensor_paths",
    "verify",
]
