"""Some hundred small modules that a careless recorder gets wrong, each folded and judged.

In float64, at three sizes, three calls each, with and without an example; the caller's model is
compared bit by bit. The modules stand in `helpers/adversaries`, by kind.
"""

from __future__ import annotations

import pytest
from torch import nn

import refold
from helpers.adversaries.around import AROUND
from helpers.adversaries.base import SIZES, Table, Two, image
from helpers.adversaries.chance import CHANCE
from helpers.adversaries.flow import FLOW
from helpers.adversaries.hooks import HOOKS
from helpers.adversaries.judge import judged
from helpers.adversaries.numbers import NUMBERS
from helpers.adversaries.parts import PARTS
from helpers.adversaries.reaching import REACHING
from helpers.adversaries.state import STATE
from helpers.adversaries.values import VALUES
from helpers.adversaries.wrappers import WRAPPERS
from helpers.traps import live

pytestmark = pytest.mark.slow

TABLES = {
    "state": STATE,
    "chance": CHANCE,
    "flow": FLOW,
    "numbers": NUMBERS,
    "hooks": HOOKS,
    "wrappers": WRAPPERS,
    "parts": PARTS,
    "values": VALUES,
    "around": AROUND,
    "reaching": REACHING,
}
CASES = [(kind, name) for kind, table in TABLES.items() for name in table]
OFTEN = ("state", "chance", "hooks")  # every second of them runs always; of other kinds a quarter
ALWAYS = [
    (kind, name)
    for kind, table in TABLES.items()
    for number, name in enumerate(table)
    if number % (2 if kind in OFTEN else 4) == 0
]
PARAMETERS = [
    pytest.param(*case, marks=[] if case in set(ALWAYS) else pytest.mark.zoo) for case in CASES
]


# A thread that a forward starts does not see the recording, and may fail on tensors of no data.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(("kind", "name"), PARAMETERS)
def test_the_fold_is_the_model(kind: str, name: str) -> None:
    for given in (True, False):
        assert judged(TABLES[kind], name, given=given) is None


def test_there_are_enough() -> None:
    assert len(CASES) >= 500
    assert len(ALWAYS) >= 150


def test_the_judge_sees_a_wrong_fold() -> None:
    """The control: a network that counts its calls outside of itself, never put back."""
    table, calls = Table(), [0]

    @table.forward()
    def counts(s, x):
        calls[0] += 1
        return s.branches(x) * calls[0]

    assert "relative error" in str(judged(table, "counts", given=True))


def test_a_hook_that_removes_itself_stays_with_the_callers_model() -> None:
    model: nn.Module = live(Two())
    model.forward = model.branches
    handles = [model.c1.register_forward_hook(lambda *_: handles[0].remove())]
    refold.plan(model, image(SIZES[0]))
    assert len(model.c1._forward_hooks) == 1
