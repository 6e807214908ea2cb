"""Methods that forward does not use: none computes with layers that were folded for forward alone.

The oracle is the model's own method in float64; the control calls the layer as it is now.
"""

from __future__ import annotations

import pickle
from typing import cast

import pytest
from torch import Tensor, nn

import refold
from helpers.traps import EXACT, WRONG, conv, gap, images, live, norms
from refold.errors import RefusedError

X = images(2, 3, 6, 5)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.other = conv(), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def before(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def differently(self, x: Tensor) -> Tensor:
        return self.other(self.conv(x))

    def encode(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu()

    def stages(self, x: Tensor) -> list[Tensor]:
        y = self.conv(x)
        y = self.norm(y)
        return [y, y.relu()]

    def start_anew(self) -> None:
        nn.init.zeros_(self.conv.weight)


class Net(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x) * 2


@pytest.mark.parametrize("example", [X, None])
def test_other_methods_refuse_and_those_of_forward_stay(example: Tensor | None) -> None:
    model = live(Net())
    folded = refold.reparameterize(model, example)
    assert norms(folded) == 1
    assert gap(model, folded, X) <= EXACT
    assert (folded.encode(X) - model.encode(X)).abs().max() <= EXACT
    for method in ("before", "differently"):
        with pytest.raises(RefusedError, match="call the method of the original model"):
            getattr(folded, method)(X)
    assert isinstance(folded, Net)
    for one, other in zip(folded.stages(X), model.stages(X), strict=True):
        assert (one - other).abs().max() <= EXACT
    again = pickle.loads(pickle.dumps(folded))
    assert gap(model, again, X) <= EXACT
    folded.start_anew()
    assert folded.conv.weight.abs().max() == 0


def test_the_control_is_wrong() -> None:
    model = live(Net())
    folded = refold.reparameterize(model, X)
    assert (Base.before(folded, X) - model.before(X)).abs().max() > WRONG


class Encoder(Base):
    """Forward goes through a method that returns the value in front of the norm."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.before(x))


class Staged(Base):
    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.stages(x)
        return y


@pytest.mark.parametrize("example", [X, None])
def test_a_method_of_the_model_returns_what_it_returned(example: Tensor | None) -> None:
    model = live(Encoder())
    folded = refold.reparameterize(model, example)
    assert gap(model, folded, X) <= EXACT
    assert (model.before(X) - folded.before(X)).abs().max() <= EXACT
    assert norms(folded) == 2  # the one behind the value, and the one that never runs


@pytest.mark.parametrize("example", [X, None])
def test_a_method_of_a_part_stands_in_no_ones_way(example: Tensor | None) -> None:
    model = live(nn.Sequential(Encoder(), nn.ReLU()))
    folded = refold.reparameterize(model, example)
    assert gap(model, folded, X) <= EXACT
    assert norms(folded) == 1  # the one that never runs


@pytest.mark.parametrize("example", [X, None])
def test_a_method_of_a_part_around_a_fold_returns_what_it_returned(example: Tensor | None) -> None:
    model = live(nn.Sequential(Staged(), nn.ReLU()))
    folded = refold.reparameterize(model, example)
    assert gap(model, folded, X) <= EXACT
    own, now = cast(Staged, model[0]).stages(X), cast(Staged, folded[0]).stages(X)
    for one, other in zip(own, now, strict=True):
        assert (one - other).abs().max() <= EXACT


def test_a_layer_in_a_method_with_its_norm_still_folds() -> None:
    model = live(nn.Sequential(Net(), nn.ReLU()))
    assert norms(refold.reparameterize(model, X)) == 1  # the one that only another method calls
