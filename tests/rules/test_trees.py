"""Random trees: those that know their minimal number of leaves reach it; all stay equal.

`python tests/rules/test_trees.py 2000 [first_seed]` runs as many plain seeds of each kind.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.strategies import Case, gap, oracle
from refold.algebra.operator import Conv, leaves
from refold.engine.replay import Replay
from refold.engine.simplify import simplify
from refold.rules import RULES
from rules.trees import (
    flattened,
    foldable,
    one_target,
    scattered,
    several_sources,
    two_targets,
    wild,
)

pytestmark = pytest.mark.slow

EXACT = 1e-9
KINDS: list[Callable[[Random], Case]] = [
    one_target,
    several_sources,
    two_targets,
    scattered,
    flattened,
    wild,
]
RANDOMS = st.randoms(use_true_random=False)
RUN = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def problem(case: Case, growth: bool) -> str | None:
    """Return what is wrong with the folded case, None when nothing is."""
    before = case.dense(case.op)
    folded = simplify(case.op, allow_growth=growth).op
    error = gap(before, case.dense(folded))
    if not error <= EXACT:
        return f"differs by {error:.1e}"
    if growth and case.minimal is not None and len(leaves(folded)) != case.minimal:
        return f"{len(leaves(folded))} leaves instead of {case.minimal}"
    return None


@settings(RUN, max_examples=60)
@given(RANDOMS)
def test_foldable_trees_reach_their_minimum(rng: Random) -> None:
    assert problem(foldable(rng), growth=True) is None


@settings(RUN, max_examples=50)
@given(RANDOMS)
def test_foldable_trees_stay_equal_without_growth(rng: Random) -> None:
    assert problem(foldable(rng), growth=False) is None


@settings(RUN, max_examples=40)
@given(RANDOMS, st.booleans())
def test_wild_trees_stay_equal(rng: Random, growth: bool) -> None:
    assert problem(wild(rng), growth) is None


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_plain_seeds(kind: Callable[[Random], Case]) -> None:
    for seed in range(30):
        assert problem(kind(Random(seed)), growth=True) is None, seed


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_plan_on_stand_ins_computes_the_same(kind: Callable[[Random], Case]) -> None:
    """Decide on `meta`, compute once: the replayed result is the directly folded one."""
    for seed in range(30):
        case = kind(Random(1000 + seed))
        replay = Replay()
        real = replay.run(simplify(replay.stand_in(case.op), allow_growth=True))
        assert gap(case.dense(case.op), case.dense(real)) <= EXACT
        assert len(leaves(real)) == len(leaves(simplify(case.op, allow_growth=True).op))


def test_small_trees_agree_with_the_oracle_itself() -> None:
    checked = 0
    for seed in range(200):
        case = one_target(Random(seed))
        if case.rank == 1:
            folded = simplify(case.op, allow_growth=True).op
            assert gap(oracle(case.op, case.shape), oracle(folded, case.shape)) <= EXACT
            checked += 1
    assert checked > 30


def test_the_trees_exercise_every_rule() -> None:
    """Between them the trees make every rule fire, but one that needs a change of layout.

    Branches that begin alike, or lie side by side before a convolution, merge altogether where
    growth is allowed, and blocks of positions have tests of their own: see test_siblings,
    test_gathered and test_phases.
    """
    apart = {"pass_pointwise_backward", "stack_heads", "gather_from_concat"}
    apart |= {"merge_phases", "merge_patches"}
    missing = {rule.name for rule in RULES} - apart
    for seed, kind in product(range(150), KINDS):
        steps = simplify(kind(Random(seed)).op, allow_growth=True).steps
        missing -= {step.rule.name for step in steps}
        if not missing:
            break
    assert not missing


@pytest.mark.parametrize("seed", range(5))
def test_a_wrong_fold_is_seen(seed: int) -> None:
    """The control: a folded kernel that is off by a millionth is not equal."""
    case = one_target(Random(seed))
    folded = simplify(case.op, allow_growth=True).op
    assert isinstance(folded, Conv)
    assert gap(case.dense(case.op), case.dense(folded)) <= EXACT
    off = replace(folded, weight=folded.weight.double() * (1 + 1e-6))
    assert gap(case.dense(case.op), case.dense(off)) > EXACT


def main(count: int, first: int) -> int:
    """Return how many of `count` seeds of each kind fail; print them."""
    failures = 0
    for kind in KINDS:
        for seed in range(first, first + count):
            for growth in (True, False):
                found = problem(kind(Random(seed)), growth)
                if found is not None:
                    failures += 1
                    sys.stdout.write(f"{kind.__name__} {seed} growth={growth}: {found}\n")
    return failures


if __name__ == "__main__":
    sys.exit(bool(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)))
