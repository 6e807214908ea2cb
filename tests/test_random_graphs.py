"""Random graphs fold to what they were; `benchmarks/random_graphs.py` runs thousands."""

from __future__ import annotations

from functools import partial
from random import Random

import pytest
import torch
from torch import nn

from helpers import random_graph_lines as kinds
from helpers.naive import naive
from helpers.nightly import some
from helpers.random_graph_growth import Growth, Line, Program, UselessLineError, grow, space
from helpers.random_graph_judge import Fault, fault, run, shrink
from refold import plan, reparameterize
from refold.graph.lift.lifter import Lifter

pytestmark = pytest.mark.slow

BATCH, BATCHES = 10, 8
MANY = 3000
TABLES = (
    "BENDS",
    "SCALES",
    "SHIFTS",
    "SUMS",
    "PRODUCTS",
    "VIEWS",
    "POOLS",
    "SIZED",
    "PADS",
    "JOINS",
)


def told(seed: int, found: Fault) -> str:
    """Return a fault with all that is needed to look into it."""
    return f"seed {seed}: {found}\n{grow(seed).source()}"


@pytest.mark.parametrize("batch", some(range(BATCHES), keep=4))
def test_graphs_fold_to_what_they_were(batch: int) -> None:
    for seed in range(batch * BATCH, (batch + 1) * BATCH):
        found = fault(grow(seed), examples=(seed % 3 > 0,))
        assert found is None, told(seed, found)


@pytest.mark.zoo
@pytest.mark.parametrize("batch", range(MANY // 100))
def test_many_graphs_fold_to_what_they_were(batch: int) -> None:
    found = {seed: fault(grow(seed)) for seed in range(batch * 100, (batch + 1) * 100)}
    assert not "\n\n".join(told(seed, wrong) for seed, wrong in found.items() if wrong)


def test_a_seed_is_one_network() -> None:
    one, two = grow(5), grow(5)
    assert one.source() == two.source()
    [first], [second] = ([run(p.build(), p.inputs(0)).results] for p in (one, two))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_most_graphs_have_something_to_fold() -> None:
    programs = [grow(seed) for seed in range(12)]
    assert sum(bool(plan(p.build(), p.inputs(0)).steps) for p in programs) >= 6


# -- every line is drawn


def growth(seed: int) -> Growth:
    """Return a body of a few lines."""
    rng = Random(seed)
    drawn = Program(rng.choice([1, 2, 2]), rng.choice([2, 3, 4]), ())
    starts = [{"x": drawn.inputs(size)[0]} for size in range(3)]
    made = Growth(rng, drawn.rank, space(), starts, "Net")
    made.grow([kinds.conv, kinds.norm, kinds.bend, kinds.view], 2)
    return made


def is_drawn(line) -> bool:
    """Say whether a line works in one of many bodies."""
    for seed in range(60):
        made = growth(seed)
        try:
            made.add(line(made))
        except UselessLineError:
            continue
        return True
    return False


@pytest.mark.parametrize("table", TABLES)
def test_every_expression_works_somewhere(table: str) -> None:
    for text in getattr(kinds, table):
        assert is_drawn(kinds.of((text,))), text


def test_every_write_works_somewhere() -> None:
    for text in kinds.WRITES:
        assert is_drawn(lambda made, text=text: kinds.fill(made, text, made.pick())), text


@pytest.mark.parametrize("kind", dict.fromkeys(kinds.KINDS), ids=lambda kind: kind.__name__)
def test_every_kind_works_somewhere(kind) -> None:
    assert is_drawn(kind)


def test_a_line_that_fails_leaves_no_trace() -> None:
    made = growth(1)
    before = list(made.lines), list(made.setup), made.values()
    with pytest.raises(UselessLineError):
        made.add(Line("v99 = self.p99 * x + missing", ("self.p99 = P(torch.ones(1))",)))
    assert (made.lines, made.setup, made.values()) == (*before,)
    assert made.standing(["self.p99"]) == []


# -- the judge


def careless(model: nn.Module, example: object = None) -> nn.Module:
    """Fold norms and convolutions that follow each other, whoever else reads them."""
    try:
        return naive(model)
    except Exception:  # what it cannot trace it leaves alone
        return model


def test_the_judge_sees_careless_folds() -> None:
    found = [fault(grow(seed), careless, examples=(True,)) for seed in range(25)]
    assert sum(wrong is not None and wrong.kind == "wrong value" for wrong in found) >= 3


def test_the_judge_sees_folds_across_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    def trusting(make, capture):
        lifter = make(capture)
        lifter.tainted.clear()
        return lifter

    monkeypatch.setattr(Lifter, "of", partial(trusting, Lifter.of))
    unchecked = partial(reparameterize, check=False)  # which would undo such a fold
    wrong = (fault(grow(seed), unchecked, examples=(True,)) for seed in range(40, 80))
    assert any(found is not None for found in wrong)


def test_the_judge_sees_a_changed_caller() -> None:
    def meddling(model: nn.Module, example: object = None) -> nn.Module:
        for parameter in model.parameters():
            parameter.data.mul_(1 + 1e-15)
        return model

    found = fault(grow(3), meddling)
    assert found is not None
    assert found.kind == "caller changed"


def test_what_fails_is_made_small() -> None:
    seed = next(s for s in range(25) if fault(grow(s), careless, examples=(True,)))
    program = grow(seed)
    find = partial(fault, fold=careless, examples=(True,))
    found = find(program)
    assert found is not None
    small = shrink(program, found.kind, find)
    again = find(small)
    assert again is not None
    assert again.kind == found.kind
    assert len(small.bodies[-1].lines) <= min(4, len(program.bodies[-1].lines))
