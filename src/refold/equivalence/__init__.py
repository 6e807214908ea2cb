"""Whether two models compute the same function: inputs, comparison, rounding, proof."""

from __future__ import annotations

from refold.equivalence.comparing import (
    IncomparableError,
    compare,
    first_line,
    relative_errors,
    tensor_leaves,
)
from refold.equivalence.copies import (
    cast_floats,
    copy_model,
    own,
    require_eval,
    run,
    run_wide,
    share,
    widen,
)
from refold.equivalence.inputs import Inputs, as_inputs, trial_inputs, unrunnable
from refold.equivalence.proof import Proof, prove
from refold.equivalence.rounding import native_bound, native_dtype, rounding_bound
from refold.equivalence.verifying import Equivalence, verify

__all__ = [
    "Equivalence",
    "IncomparableError",
    "Inputs",
    "Proof",
    "as_inputs",
    "cast_floats",
    "compare",
    "copy_model",
    "first_line",
    "native_bound",
    "native_dtype",
    "own",
    "prove",
    "relative_errors",
    "require_eval",
    "rounding_bound",
    "run",
    "run_wide",
    "share",
    "tensor_leaves",
    "trial_inputs",
    "unrunnable",
    "verify",
    "widen",
]
