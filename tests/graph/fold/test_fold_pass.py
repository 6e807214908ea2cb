"""The fold pass: what it makes of a graph, where it puts it and what it leaves as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graph.graphs import fold_pass
from helpers.traps import conv, gap, images, live, net, sound

Norm = nn.BatchNorm2d


def run(model: nn.Module, *inputs, **options):
    """Return the finished pass and its graph, which computes the same."""
    model, inputs = live(model), inputs or (images(),)
    done = fold_pass(model, *inputs, **options)
    done.run()
    done.editor.sweep()
    done.lifter.capture.graph.lint()
    assert gap(model, done.lifter.capture.graph_module(), *inputs) <= 1e-9
    return done


def targets(done) -> list[str]:
    """Return what the graph calls, in order."""
    calls = [n for n in done.lifter.capture.graph.nodes if n.op.startswith("call")]
    return [n.target if isinstance(n.target, str) else n.target.__name__ for n in calls]


def test_a_chain_keeps_its_place() -> None:
    done = run(nn.Sequential(conv(), Norm(4), nn.ReLU(), conv(4, 4), nn.Identity(), Norm(4)))
    assert targets(done)[0] == "0"
    assert [fold.where for fold in done.folds] == ["0", "3"]
    assert not [name for name in targets(done) if name in ("1", "5")]


def test_branches_become_one_new_layer() -> None:
    done = run(net(lambda self, x: F.relu(self.a(x) + self.b(x)), a=conv(), b=conv()))
    assert targets(done) == ["reparam_conv", "relu"]
    [fold] = done.folds
    assert fold.rule == "add_branches"
    assert fold.detail == "a + b"


@pytest.mark.parametrize(
    ("has", "name"),
    [
        ({}, "reparam_conv"),
        ({"deploy_name": "plain"}, "plain"),
        ({"deploy_name": "plain", "plain": None}, "reparam_conv"),
        ({"reparam_conv": None}, "reparam_conv_1"),
        ({"deploy_name": 3}, "reparam_conv"),
    ],
)
def test_a_new_convolution_has_the_name_that_its_module_gives(
    has: dict[str, object], name: str
) -> None:
    model = net(lambda self, x: self.a(x) + self.b(x), a=conv(), b=conv())
    for attribute, value in has.items():
        setattr(model, attribute, value)
    assert targets(run(model)) == [name]


def test_norms_of_branches_that_stay_apart_fold_in_their_places() -> None:
    def forward(self, x):
        return self.b1(self.c1(x)) + self.b2(self.c2(x.relu()))

    done = run(net(forward, c1=conv(), b1=Norm(4), c2=conv(), b2=Norm(4)))
    assert set(targets(done)) == {"c1", "c2", "relu", "add"}
    assert sorted(fold.where for fold in done.folds) == ["c1", "c2"]


def test_norm_after_a_sum_goes_to_both() -> None:
    def forward(self, x):
        return self.b(self.c1(x) + self.c2(x.relu()))

    done = run(net(forward, c1=conv(), c2=conv(), b=Norm(4)))
    assert not [name for name in targets(done) if name == "b"]
    assert len([name for name in targets(done) if name == "add"]) == 1


def test_a_subtraction_stays_one() -> None:
    def forward(self, x):
        y = self.c(x)
        return (y + y * 2) - self.d(x.tanh())

    done = run(net(forward, c=conv(), d=conv()))
    assert sorted(targets(done)) == ["c", "d", "sub", "tanh"]


@pytest.mark.parametrize("alpha", [-1, 1, 0.5, -2])
def test_a_weighted_sum_of_two_values(alpha: float) -> None:
    def forward(self, x):
        y = self.c(x)
        return torch.add(y + y * 2, self.d(x.tanh()), alpha=alpha)

    run(net(forward, c=conv(), d=conv()))


def test_constants_on_the_left() -> None:
    def forward(self, x):
        return 2 - self.g * (0.5 * self.c(x.relu())) * 3

    gamma = nn.Parameter(torch.randn(4, 1, 1))
    assert targets(run(net(forward, c=conv(), g=gamma))) == ["relu", "c"]


def test_a_part_of_a_split_keeps_reading_its_part() -> None:
    def forward(self, x):
        one, two = self.c(x).chunk(2, 1)
        return self.d(one) + self.e(two.relu())

    run(net(forward, c=conv(3, 4), d=conv(2, 4), e=conv(2, 4)))
    run(net(forward, c=conv(3, 4), d=conv(2, 4), e=conv(2, 4)), allow_growth=True)


def test_what_was_made_can_be_folded_again() -> None:
    def forward(self, x):
        y = self.c(x)
        return self.d(y[..., 1:, :] * 2 + y[..., 1:, :] + 1)

    done = run(net(forward, c=conv(), d=conv(4, 4, 1)), allow_growth=True)
    assert len(targets(done)) == 1


def test_a_ring_of_zeros_is_not_moved_ahead_of_a_layer_that_would_compute_it() -> None:
    def forward(self, x):
        return nn.functional.pad(self.c(x), (3, 3, 3, 3)).relu()

    model = net(forward, c=conv(3, 4, 1, bias=False))
    assert not run(model).folds
    assert run(model, allow_growth=True).folds


@pytest.mark.parametrize(
    ("after", "features"),
    [
        (lambda y: y.permute(0, 2, 3, 1), 8),
        (lambda y: y.mean((2, 3)), 8),
        (lambda y: y.flatten(1), 8 * 99),
        (lambda y: y.flatten(2).transpose(1, 2), 8),
    ],
)
@pytest.mark.parametrize("allow_growth", [False, True])
def test_a_concatenation_keeps_its_axis_where_the_layout_changes_later(
    after, features: int, allow_growth: bool
) -> None:
    def forward(self, x):
        return self.l(after(torch.cat([self.a(x) + self.b(x), self.c(x.relu())], 1)))

    layers = {name: conv() for name in "abc"}
    run(net(forward, **layers, l=nn.Linear(features, 8)), allow_growth=allow_growth)


@pytest.mark.parametrize("outputs", [2, 8])
@pytest.mark.parametrize("shape", [(2, 4, 99), (-1, 4, 99), (2, 4, -1)])
def test_a_reshape_that_states_the_channels_keeps_them(outputs: int, shape: tuple) -> None:
    def forward(self, x):
        return self.l(self.c(x).reshape(shape).transpose(1, 2))

    model = net(forward, c=conv(3, 4), l=nn.Linear(4, outputs))
    run(model)
    run(model, allow_growth=True)


@pytest.mark.parametrize(
    "relayout",
    [
        lambda y: y.mean((2, 3), keepdim=True).squeeze(),
        lambda y: y.mean((2, 3), keepdim=True).squeeze((1, 2, 3)),
        lambda y: y.permute(0, 2, 3, 1).reshape(-1, 4),
        lambda y: y.mean((2, 3)).view(2, 4),
        lambda y: y.flatten(2).transpose(1, 2).reshape_as(torch.zeros(2, 99, 4)),
        lambda y: nn.Unflatten(1, (4, 1))(y.mean((2, 3))).transpose(1, 2),
    ],
)
@pytest.mark.parametrize("outputs", [1, 2, 8])
def test_relayouts_that_only_fit_their_channels_keep_them(relayout, outputs: int) -> None:
    def forward(self, x):
        return self.l(relayout(self.c(x)))

    model = net(forward, c=conv(3, 4), l=nn.Linear(4, outputs))
    run(model)
    run(model, allow_growth=True)


@pytest.mark.parametrize("shape", [(2, -1, 99), (-1, 4, 99)])
def test_a_reshape_lets_a_layer_pass_that_keeps_the_channels(shape: tuple) -> None:
    def forward(self, x):
        return self.l(self.c(x).reshape(shape).transpose(1, 2))

    model = net(forward, c=conv(3, 4, 1), l=nn.Linear(4, 4))
    assert len({"c", "l"}.intersection(targets(run(model, allow_growth=True)))) == 1


def test_shapes_stay_true_behind_a_layer_that_moved() -> None:
    def forward(self, x):
        parts = self.l(self.c(x).permute(0, 2, 3, 1)).split(1, -1)
        return torch.cat([self.d(parts[0]), self.e(parts[1]), self.f(parts[2])], -1)

    small = {name: nn.Linear(1, 2) for name in "def"}
    run(net(forward, c=conv(3, 2), l=nn.Linear(2, 3), **small), allow_growth=True)


def test_new_weights_have_the_precision_of_weights_not_of_indices() -> None:
    def forward(self, x):
        y = self.p(x) + x
        return y[:, self.index].relu() + self.c(x)

    index = nn.Parameter(torch.tensor([2, 0, 1]), requires_grad=False)
    done = run(net(forward, p=nn.AvgPool2d(3, 1, 1), index=index, c=conv(3, 3)), allow_growth=True)
    module = done.lifter.capture.module
    assert {p.dtype for p in module.parameters()} == {torch.float64, torch.int64}


def test_costs_of_a_fold_are_before_and_after() -> None:
    done = run(nn.Sequential(nn.ConvTranspose2d(3, 4, 2, 2, bias=False), Norm(4)))
    [fold] = done.folds
    assert (fold.parameters_before, fold.parameters_after) == (56, 52)
    assert fold.macs_before == fold.macs_after == 2 * 11 * 9 * 48


def test_a_value_that_does_not_fit_leaves_the_graph_as_it_was() -> None:
    model = nn.Sequential(conv(), Norm(4))
    with torch.no_grad():
        live(model)[1].weight.fill_(6e4)
        model[0].weight.fill_(9)
    half = model.half()
    done = fold_pass(half, images().half())
    assert not done.run()
    assert targets(done) == ["0", "1"]
    assert all("beyond the largest" in kept.reason for kept in done.refused.values())


def test_branches_are_only_merged_where_that_costs_no_more() -> None:
    def forward(self, x):
        return self.a(x) + self.b(x)

    wide, tall = nn.Conv2d(3, 3, (1, 3), padding=(0, 1)), nn.Conv2d(3, 3, (3, 1), padding=(1, 0))
    assert not run(net(forward, a=wide, b=tall)).folds
    assert run(net(forward, a=wide, b=tall), allow_growth=True).folds


def test_shape_that_the_fold_would_change_is_still_right() -> None:
    def forward(self, x):
        y = self.c(x)
        z = self.d(y)
        return z.reshape(z.shape[0], -1) * y.shape[1] + y.shape[2]

    sound(net(forward, c=conv(3, 5, 1, bias=False), d=conv(5, 4, padding=0)), allow_growth=True)


def test_weights_shaped_like_themselves_have_one_reader() -> None:
    """So do the standardised weights of timm's nfnets."""

    class Standardised(nn.Conv2d):
        def forward(self, x):
            flat = self.weight.reshape(1, self.out_channels, -1)
            weight = F.batch_norm(flat, None, None, training=True).reshape_as(self.weight)
            return F.conv2d(x, weight, self.bias)

    done = run(nn.Sequential(Standardised(3, 4, 3), Norm(4)))
    assert len(done.folds) == 1
