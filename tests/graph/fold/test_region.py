"""Regions: the largest affine expression behind a value, and where it has to stop."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from graph.graphs import lifter, nodes, regions
from helpers.traps import conv, images, live, net
from refold.algebra.operator import Concat, Conv, Input, Sequence, Sum, chain, leaves
from refold.graph.fold.region import Regions, node_of

Norm = nn.BatchNorm2d


def names(region) -> list[str]:
    return [node.name for node in region.nodes]


def test_one_region_from_the_input_to_the_first_nonlinearity() -> None:
    model = live(nn.Sequential(conv(), Norm(4), nn.ReLU(), conv(4, 4), Norm(4)))
    first, second = regions(model, images())
    assert names(first) == ["_0", "_1"]
    assert names(second) == ["_3", "_4"]
    assert first.rank == second.rank == 2
    assert [node.name for node in first.inputs] == ["input_1"]
    assert [node.name for node in second.inputs] == ["_2"]


def test_every_leaf_knows_its_node() -> None:
    model = live(net(lambda self, x: self.b(self.c(x)) + x * 2, c=conv(3, 3), b=Norm(3)))
    [region] = regions(model, images())
    assert isinstance(region.op, Sum)
    assert len(leaves(region.op)) == 3
    found = [node_of(leaf).name for leaf in leaves(region.op)]
    assert found == ["c", "b", "mul"]


def test_a_value_read_twice_is_an_input_of_its_readers() -> None:
    def forward(self, x):
        y = self.c(x)
        return self.b(y) + y

    model = live(net(forward, c=conv(), b=Norm(4)))
    inner, outer = regions(model, images())
    assert names(inner) == ["c"]
    assert [node.name for node in outer.inputs] == ["c"]


def test_readers_of_the_shape_alone_do_not_count() -> None:
    def forward(self, x):
        y = self.c(x)
        return self.b(y).reshape(y.shape[0], -1)

    model = live(net(forward, c=conv(), b=Norm(4)))
    found = regions(model, images(), chains=True)
    assert any(names(region)[:2] == ["c", "b"] for region in found)


def test_chains_leave_joins_out() -> None:
    model = live(net(lambda self, x: self.b(self.c(x)) + self.d(x), c=conv(), d=conv(), b=Norm(4)))
    [whole] = regions(model, images())
    assert isinstance(whole.op, Sum)
    chains = regions(model, images(), chains=True)
    assert sorted(map(names, chains)) == [["c", "b"], ["d"]]


def test_joins_are_told_apart_from_scales() -> None:
    model = live(net(lambda self, x: self.c(x) * 2 - self.d(x), c=conv(), d=conv()))
    [region] = regions(model, images())
    assert [node.name for node in region.joins] == ["sub"]


def test_pushed_values_are_lifted_into_every_reader() -> None:
    def forward(self, x):
        y = self.b(x.relu())
        return self.c(y).relu() + self.d(y).tanh()

    model = live(net(forward, b=Norm(3), c=conv(), d=conv()))
    known = lifter(model, images())
    node = nodes(known)["b"]
    found = Regions(known, frozenset({node}))
    inside = [names(region) for region in found.largest()]
    assert ["b", "c"] in inside
    assert ["b", "d"] in inside


def test_rank_is_told_from_either_side() -> None:
    def cropped(self, x):
        return self.c(x[:, :2][..., 1:])

    [region] = regions(live(net(cropped, c=conv(2, 4))), images())
    assert len(region.nodes) == 3
    assert region.rank == 2

    def tokens(self, x):
        return self.linear(x.flatten(2).transpose(1, 2))

    [region] = regions(live(net(tokens, linear=nn.Linear(3, 4))), images())
    assert region.rank == 0
    assert len(region.nodes) == 3


def test_rank_of_one_branch_tells_the_others() -> None:
    def forward(self, x):
        return F.pad(x, [0, 0]) + self.p(x) + self.g

    gamma = nn.Parameter(torch.randn(1, 1, dtype=torch.float64))
    model = live(net(forward, p=nn.AvgPool1d(1), g=gamma))
    [region] = regions(model, images(2, 1, 9))
    assert {node.name for node in region.inputs} == {"x"}


def test_channels_of_inputs_are_known_from_their_shape() -> None:
    [region] = regions(live(nn.Sequential(nn.AvgPool2d(3))), images())
    [start] = [part for part in chain(region.op) if isinstance(part, Input)]
    assert start.channels == 3


def test_concatenation_along_the_channels_only() -> None:
    def beside(self, x):
        return self.c(torch.cat([x, x.relu()], 1))

    def above(self, x):
        return self.d(torch.cat([x, x.relu()], 2))

    [wide] = regions(live(net(beside, c=conv(6, 4))), images())
    assert isinstance(wide.op, Sequence)
    assert isinstance(wide.op.parts[0], Concat)
    [tall] = regions(live(net(above, d=conv())), images(), chains=True)
    assert [type(leaf) for leaf in leaves(tall.op)] == [Conv]
