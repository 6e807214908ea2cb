"""What a rule is: a pure function from operators to an equal operator, a refusal, or None.

None means "not my shape"; a `Refusal` means "my shape, but this precondition fails". Rules decide
on structure and geometry, never on the values in tensors, so the same decisions are made on `meta`
tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from refold.algebra.operator import Operator, Refusal, leaves, made_of
from refold.errors import GeometryError

Window = Literal["series", "parallel", "concat", "siblings", "commute", "distribute", "last"]
Outcome = Operator | Refusal | None


@dataclass(frozen=True)
class Rule:
    """A named rewrite with its source and its condition.

    Args:
        name: verb and object, as reports print it.
        window: what it is shown: two operators in series, the branches of a sum or of a
            concatenation, branches that begin alike, two operators that may change places, a
            join followed by one operator, or (last, where growth is allowed) two operators in
            series that nothing else has taken in.
        exact: the condition under which the rewrite holds for every input.
        source: where it is published.
        function: the rewrite itself.
        is_backward: of two operators that change places it carries the second one back, not the
            first one on.
        is_free: it only takes something away from a sum, so it is applied before any merge is
            weighed.
        by_channel: all it does is scale and add kernels, so every output channel of dense ones can
            be computed on its own.
        undone_by: the name of the rule that would undo it without end; while its result is tried,
            that one is left out.
    """

    name: str
    window: Window
    exact: str
    source: str
    function: Callable[[Operator], Outcome]
    is_backward: bool = False
    is_free: bool = False
    by_channel: bool = False
    undone_by: str = ""

    def __call__(self, op: Operator) -> Outcome:
        """Return the rewritten operator, a refusal that carries this rule's name, or None."""
        try:
            outcome = self.function(op)
        except GeometryError as error:
            return Refusal(self.name, str(error), (op,))
        if isinstance(outcome, Refusal):
            return Refusal(self.name, outcome.reason, (op,), outcome.costlier)
        if outcome is not None:
            _inherit(outcome, op)
        return outcome


def _inherit(outcome: Operator, window: Operator) -> None:
    """Note on new leaves that they are made of those that went, or of all where none did."""
    before, after = set(leaves(window)), leaves(outcome)
    kept = made_of(*before.intersection(after))
    used = made_of(window)
    for leaf in after:
        if leaf not in before:  # the rule has just made it: nobody else has seen it
            object.__setattr__(leaf, "made_of", used - kept or used)


def rule(
    window: Window,
    *,
    exact: str,
    source: str,
    is_backward: bool = False,
    is_free: bool = False,
    by_channel: bool = False,
    undone_by: str = "",
) -> Callable[[Callable[[Operator], Outcome]], Rule]:
    """Make a function a `Rule`. It does not register it: the tuple `RULES` is the registration.

    Args:
        window: as in `Rule`, like all the others.
        exact: the condition.
        source: where it is published.
        is_backward: which operator it carries.
        is_free: whether it only takes away.
        by_channel: whether it only scales and adds kernels.
        undone_by: the name of its inverse.
    """

    def wrap(function: Callable[[Operator], Outcome]) -> Rule:
        return Rule(
            function.__name__, window, exact, source, function,
            is_backward, is_free, by_channel, undone_by,
        )  # fmt: skip

    return wrap


def refuse(reason: str) -> Refusal:
    """Return a refusal; the rule that returns it adds its name."""
    return Refusal("", reason)
