"""Random networks fold to their fewest operators; many more run by `tests/random_nets.py`."""

from __future__ import annotations

import copy

import pytest
import torch

from helpers import random_nets
from helpers.random_count import count
from helpers.random_nets import build, fault
from refold import plan

pytestmark = pytest.mark.slow

BATCH, BATCHES, ALWAYS = 10, 30, 3


@pytest.mark.parametrize(
    "batch",
    [*range(ALWAYS), *(pytest.param(n, marks=pytest.mark.zoo) for n in range(ALWAYS, BATCHES))],
)
def test_nets_fold_to_their_minimum(batch: int) -> None:
    wrong = {}
    for seed in range(batch * BATCH, (batch + 1) * BATCH):
        if found := fault(build(seed)):
            wrong[seed] = found
    assert not wrong


def test_every_kind_of_stage_is_drawn() -> None:
    stories = " ".join(build(seed).story for seed in range(60))
    kinds = ["plain", "residual", "several", "scatter", "fan", "ring", "tokens", "alone"]
    kinds += ["dense", "head", "pair", "1-D", "2-D", "3-D"]
    assert not [kind for kind in kinds if kind not in stories]


def test_the_check_sees_what_was_not_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_nets, "reparameterize", lambda model, *_, **__: copy.deepcopy(model))
    found = [fault(build(seed)) for seed in range(12)]
    assert sum("operators" in (text or "") for text in found) >= 8


def test_the_check_sees_a_wrong_value(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model, *_, **__):
        spoilt = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in spoilt.parameters():
                parameter.mul_(1.0001)
        return spoilt

    monkeypatch.setattr(random_nets, "reparameterize", wrong)
    assert all("error" in (fault(build(seed)) or "") for seed in range(6))


@pytest.mark.parametrize("seed", range(5))
def test_growth_is_refused_by_default_and_the_value_stays(seed: int) -> None:
    net = build(seed)
    done = plan(net.model, net.inputs)
    assert done.cost_after.macs <= done.cost_before.macs
    folded = done.apply()
    with torch.no_grad():
        wanted, got = net.model(*net.inputs), folded(*net.inputs)
    assert (wanted - got).abs().max() <= 1e-9 * wanted.abs().max()
    assert count(folded, net.inputs) >= net.minimal
