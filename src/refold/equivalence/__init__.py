"""Whether two models compute the same function: copies, trials, comparison, rounding, proof."""

from __future__ import annotations

from refold.equivalence.comparing import (
    IncomparableError,
    compare,
    relative_errors,
    tensor_leaves,
)
from refold.equivalence.copies import prepared, run
from refold.equivalence.proof import Proof, prove
from refold.equivalence.rounding import (
    native_bound,
    native_dtype,
    rounding_bound,
    runtime_rounding,
)
from refold.equivalence.verifying import Equivalence, verify

__all__ = [
    "Equivalence",
    "IncomparableError",
    "Proof",
    "compare",
    "native_bound",
    "native_dtype",
    "prepared",
    "prove",
    "relative_errors",
    "rounding_bound",
    "run",
    "runtime_rounding",
    "tensor_leaves",
    "verify",
]
