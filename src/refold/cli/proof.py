"""The proof that a command ships: the fold in float64, and the very weights that are written."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from refold.cli.console import note, say
from refold.cli.subject import Subject

if TYPE_CHECKING:
    from torch import nn

    from refold.verify import Equivalence


@dataclass(frozen=True)
class Proof:
    """Two checks: `exact` is of a fold done wholly in float64, `shipped` of the rounded weights."""

    exact: Equivalence
    shipped: Equivalence

    def say(self) -> None:
        """Print both errors, and a warning if the check could not have failed."""
        exact, shipped = self.exact, self.shipped
        say(
            f"equal: largest error {exact.max_rel_error:.1e} in float64 over "
            f"{len(exact.trials)} inputs; {shipped.max_rel_error:.1e} with the weights as written"
        )
        if shipped.vacuous:
            note(
                "warning: every norm still has its initial statistics, so this proves little: "
                "give --checkpoint, or --live-statistics to try the fold on random ones"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {"exact": self.exact.to_dict(), "shipped": self.shipped.to_dict()}


def prove(
    subject: Subject, folded: nn.Module, fold: Callable[[nn.Module, Any], nn.Module]
) -> Proof:
    """Check a folded network against its original, and the same fold of a float64 copy to 1e-9.

    Args:
        subject: the original and its inputs.
        folded: what a verb made of it.
        fold: does the same to another model, given its inputs.

    Raises:
        NotEquivalentError: if either differs.
    """
    import refold

    wide = copy.deepcopy(subject.model).double()
    inputs = tuple(x.double() if x.is_floating_point() else x for x in subject.example_inputs)
    exact = refold.verify(wide, fold(wide, inputs), inputs).check()
    del wide
    gc.collect()  # graphs refer to themselves and hold the weights: gigabytes of a large network
    shipped = refold.verify(subject.model, folded, subject.example_inputs).check()
    return Proof(exact, shipped)
