"""Code that decides by how its input lies in memory, by its gradient, or by a size in disguise.

The oracle is the model itself in float64, called so that it takes the other path; the control does
not ask what the other answer would lead to, and must come out wrong.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from helpers.traps import EXACT, WRONG, conv, gap, images, live
from refold import reparameterize
from refold.graph.trace.other_runs.evidence import Evidence

X = images(2, 3, 9, 9)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.other = conv(3, 3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def usual(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


ASKS: dict[str, tuple[Callable[[Tensor], bool], Tensor]] = {
    "contiguous": (lambda x: x.is_contiguous(), images(2, 3, 9, 18)[..., ::2]),
    "stride": (lambda x: x.stride(1) > 1, X.to(memory_format=torch.channels_last)),
    "gradient": (lambda x: not x.requires_grad, X.clone().requires_grad_()),
    "logarithm": (lambda x: math.log2(x.shape[-1]) > 3, images(1, 3, 12, 7)),
    "largest side": (lambda x: max(x.shape) < 10, images(1, 3, 12, 7)),
    "whole shape": (lambda x: x.shape[-2:] == (9, 9), images(1, 3, 12, 7)),
}


def made(ask: Callable[[Tensor], bool], *, methods: bool) -> nn.Module:
    class Net(Two):
        def forward(self, x: Tensor) -> Tensor:
            if ask(x):
                return self.usual(x) if methods else self.norm(self.conv(x))
            return self.other(self.conv(x))

    return live(Net())


@pytest.mark.parametrize("methods", [False, True])
@pytest.mark.parametrize("name", ASKS)
def test_the_other_path_stays_exact(name: str, methods: bool) -> None:
    ask, other = ASKS[name]
    model = made(ask, methods=methods)
    assert ask(X)
    assert not ask(other)
    folded = reparameterize(copy.deepcopy(model), X)
    assert gap(model, folded, X) <= EXACT
    wanted, got = model(other), folded(other)
    assert (wanted - got).abs().max() <= EXACT * wanted.abs().max()


def test_the_control_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Evidence, "objection", lambda self, nodes, names: None)
    for name in ("contiguous", "stride"):
        ask, other = ASKS[name]
        model = made(ask, methods=False)
        folded = reparameterize(copy.deepcopy(model), X)
        assert (model(other) - folded(other)).abs().max() > WRONG


SHAPES = {"shape": (2, 3, 9, 9), "side": (1, 3, 9, 9)}


@pytest.mark.parametrize("name", SHAPES)
def test_a_size_that_the_code_names_is_tried_where_no_example_is(name: str) -> None:
    class Net(Two):
        def forward(self, x: Tensor) -> Tensor:
            special = x.shape == (2, 3, 9, 9) if name == "shape" else int(x.shape[-1]) == 9
            return self.other(self.conv(x)) if special else self.norm(self.conv(x))

    model = live(Net())
    folded = reparameterize(copy.deepcopy(model))
    for x in (images(*SHAPES[name]), images(1, 3, 8, 7)):
        assert gap(model, folded, x) <= EXACT


class Harmless(Two):
    """Asks, and does the same either way."""

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.is_contiguous() else x.contiguous()
        if x.requires_grad:
            x.register_hook(lambda grad: grad)
        return self.norm(self.conv(x))


def test_a_harmless_question_costs_no_fold() -> None:
    model = live(Harmless())
    folded = reparameterize(copy.deepcopy(model), X)
    assert isinstance(folded.norm, nn.Identity)
    assert gap(model, folded, X.to(memory_format=torch.channels_last)) <= EXACT
