"""Make and print the proof that a command ships."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from refold.cli.console import note, say
from refold.cli.subject import Subject

if TYPE_CHECKING:
    from torch import nn

    from refold.equivalence import Proof


def prove(
    subject: Subject, folded: nn.Module, fold: Callable[[nn.Module, Any], nn.Module]
) -> Proof:
    """Check a folded network against its original; see `refold.equivalence.prove`.

    Raises:
        NotEquivalentError: if either differs.
    """
    from refold.equivalence import prove as prove_fold

    return prove_fold(subject.model, folded, subject.example_inputs, fold)


def say_proof(proof: Proof) -> None:
    """Print both errors, and a warning if the check could not have failed."""
    say(str(proof))
    if proof.shipped.vacuous:
        note(
            "warning: every norm still has its initial statistics, so this proves little: "
            "give --checkpoint, or --live-statistics to try the fold on random ones"
        )
