"""A fold in inference mode, or with another default device: its tensors are ordinary ones."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import nn

import refold
from helpers.traps import EXACT, conv, gap, images, live, norms

X = images(2, 3, 6, 5)
VERBS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "reparameterize": lambda model: refold.reparameterize(model, X),
    "reparameterize without example": refold.reparameterize,
    "plan": lambda model: refold.plan(model, X).apply(),
    "expand": refold.expand,
    "remove_residuals": lambda model: refold.remove_residuals(model, X),
    "prune": lambda model: refold.prune(model, X, ratio=0.5),
}


def made() -> nn.Module:
    return live(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 4, 1)))


@pytest.mark.parametrize("name", VERBS)
def test_the_result_trains(name: str) -> None:
    model = made()
    with torch.inference_mode():
        result = VERBS[name](model)
    result.train()(X).sum().backward()
    assert all(value.grad is not None for value in result.parameters())


def test_the_control_does_not_train() -> None:
    with torch.inference_mode():
        copied = nn.Conv2d(3, 4, 1)
    with pytest.raises(RuntimeError, match="Inference tensors"):
        copied(X.float())


@pytest.mark.parametrize("example", [X, None])
@pytest.mark.parametrize("world", [lambda: torch.device("meta"), torch.inference_mode])
def test_the_fold_is_the_same(
    world: Callable[[], AbstractContextManager[Any]], example: Any
) -> None:
    model = made()
    with world():
        folded = refold.reparameterize(model, example)
    assert norms(folded) == 0
    assert gap(model, folded, X) <= EXACT
