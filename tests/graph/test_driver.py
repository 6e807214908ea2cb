"""The driver: copying, several captures of one model, and what holds whatever was folded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers.traps import bits, conv, gap, images, live, net, norms, same_bits
from refold.errors import InputError, RefusedError
from refold.graph.driver import fold_model

Norm = nn.BatchNorm2d


class ByData(nn.Module):
    """Two parts that are captured one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(conv(3, 4), Norm(4), nn.ReLU())
        self.two = net(lambda self, x: self.a(x) + self.b(x), a=conv(4, 4), b=conv(4, 4, 1))

    def forward(self, x):
        x = self.one(x)
        return self.two(x) if x.sum() > 0 else x


def test_outcome_of_one_capture() -> None:
    outcome = fold_model(live(nn.Sequential(conv(), Norm(4))), images())
    assert [fold.where for fold in outcome.folds] == ["0"]
    assert outcome.kept == ()
    assert norms(outcome.model) == 0


def test_parts_are_folded_under_their_full_names() -> None:
    model = live(ByData())
    outcome = fold_model(model, images())
    assert [fold.where for fold in outcome.folds] == ["one.0", "two.reparam_conv"]
    assert [kept.where for kept in outcome.kept] == [""]
    assert gap(model, outcome.model, images()) <= 1e-9


def branchy() -> nn.Module:
    inner = net(lambda self, x: self.i(x) * 2, i=conv())
    parts = nn.Sequential(conv(), Norm(4)), nn.Sequential(inner, Norm(4))
    return net(lambda self, x: self.a(x) + self.b(x), a=parts[0], b=parts[1])


@pytest.mark.parametrize(
    "model",
    [
        lambda: nn.Sequential(branchy(), conv(4, 4, 1), nn.ReLU()),
        lambda: nn.Sequential(nn.Sequential(branchy(), Norm(4)), conv(4, 2, 1), nn.ReLU()),
        lambda: nn.Sequential(conv(3, 3, 1, bias=False), branchy(), conv(4, 4, 1)),
    ],
)
def test_a_whole_block_becomes_part_of_its_neighbour_in_a_sequential(model) -> None:
    model = live(model())
    folded = fold_model(model, images(), allow_growth=True).model
    assert sum(isinstance(m, nn.Conv2d) for m in folded.modules()) == 1
    assert len(folded) == len(model)
    assert gap(model, folded, images()) <= 1e-9


def test_nothing_to_fold_gives_a_copy_all_the_same() -> None:
    model = live(nn.Sequential(conv(), nn.ReLU()))
    outcome = fold_model(model, images())
    assert not outcome.folds
    assert outcome.model is not model
    assert outcome.model[0].weight is not model[0].weight
    assert torch.equal(outcome.model[0].weight, model[0].weight)


def test_root_that_is_a_layer_itself() -> None:
    outcome = fold_model(live(conv()), images())
    assert isinstance(outcome.model, nn.Conv2d)


def test_plain_attributes_and_children_outside_the_forward_stay() -> None:
    model = live(nn.Sequential(conv(), Norm(4)))
    model.note = {"classes": ["cat", "dog"]}
    model.register_buffer("mean", torch.ones(3, dtype=torch.float64))
    folded = fold_model(model, images()).model
    assert folded.note == model.note
    assert folded.note is not model.note
    assert torch.equal(folded.mean, model.mean)
    assert folded.mean is not model.mean


def test_inplace_keeps_the_identity_of_the_model() -> None:
    model = live(ByData())
    weight = model.two.a.weight
    outcome = fold_model(model, images(), inplace=True)
    assert outcome.model is model
    assert norms(model) == 0
    assert weight not in set(model.parameters())


def test_a_refused_model_is_untouched() -> None:
    model = live(ByData()).train()
    before = bits(model)
    with pytest.raises(RefusedError, match="training mode"):
        fold_model(model, images(), inplace=True)
    assert same_bits(before, bits(model))


def test_a_wrong_example_leaves_the_model_untouched() -> None:
    model = live(nn.Sequential(conv(), Norm(4)))
    before = bits(model)
    with pytest.raises(InputError):
        fold_model(model, images(2, 7, 8, 8), inplace=True)
    assert same_bits(before, bits(model))


def test_no_gradient_is_recorded_and_the_mode_is_restored() -> None:
    model = live(nn.Sequential(conv(), Norm(4)))
    with torch.enable_grad():
        folded = fold_model(model, images()).model
        assert torch.is_grad_enabled()
    assert all(parameter.is_leaf for parameter in folded.parameters())
    assert all(parameter.grad_fn is None for parameter in folded.parameters())


def test_random_state_is_not_used() -> None:
    model = live(ByData())
    torch.manual_seed(3)
    before = torch.get_rng_state()
    fold_model(model, images())
    assert torch.equal(before, torch.get_rng_state())
