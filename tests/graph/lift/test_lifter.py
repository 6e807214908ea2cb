"""Single nodes as operators: every way to write a call is one piece, and look-alikes are none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graph.graphs import lifter, nodes
from helpers.traps import conv, images, live, net
from refold.algebra.apply import apply
from refold.algebra.operator import Affine, AvgPool, Conv, Identity, Pad, Select, Zero
from refold.graph.lift.piece import Piece


def last(forward: Any, *inputs: Tensor, **children: Any) -> Any:
    """Return what the last node of a forward is lifted to."""
    found = lifter(live(net(forward, **children)), *(inputs or (images(),)))
    return found.lift(nodes(found)["output"].args[0])


W = torch.randn(4, 3, 3, 3, dtype=torch.float64)
GAMMA = torch.randn(3, 1, 1, dtype=torch.float64)
INDEX = torch.tensor([2, 0])


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: F.conv2d(x, self.w, padding=1),
        lambda self, x: torch.conv2d(x, self.w, None, 1, 1),
        lambda self, x: torch.convolution(
            x, self.w, None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1
        ),
        lambda self, x: F.conv2d(input=x, weight=self.w, padding="same"),
        lambda self, x: torch.ops.aten.conv2d(x, self.w, None, [1, 1], [1, 1]),
    ],
)
def test_convolution_by_any_name(forward: Any) -> None:
    piece = last(forward, w=nn.Parameter(W))
    [op] = piece.ops
    assert isinstance(op, Conv)
    assert piece.rank_in == 2
    x = images()
    assert torch.allclose(apply(op, x), F.conv2d(x, W, padding=1))


SCALES = {
    "x * g": lambda self, x: x * self.g,
    "g * x": lambda self, x: self.g * x,
    "mul": lambda self, x: x.mul(self.g),
    "torch.mul": lambda self, x: torch.mul(x, self.g),
    "other=": lambda self, x: torch.mul(x, other=self.g),
    "div": lambda self, x: x / self.g,
    "view": lambda self, x: x * self.g.view(1, -1, 1, 1),
    "add": lambda self, x: x + self.g,
    "radd": lambda self, x: self.g + x,
    "alpha": lambda self, x: torch.add(x, self.g, alpha=3),
    "sub": lambda self, x: x - self.g,
    "rsub": lambda self, x: self.g - x,
    "number": lambda self, x: x * 2.5,
    "rnumber": lambda self, x: 1 - x,
    "rdiv by a number": lambda self, x: x / 4,
    "neg": lambda self, x: -x,
    "torch.neg": lambda self, x: torch.neg(x),
    "nothing added": lambda self, x: x + 0,
    "multiplied by one": lambda self, x: x * 1,
}


@pytest.mark.parametrize("name", SCALES)
def test_scales_and_shifts(name: str) -> None:
    found = lifter(live(net(SCALES[name], g=nn.Parameter(GAMMA))), images())
    piece = found.lift(nodes(found)["output"].args[0])
    assert isinstance(piece, Piece)
    [op] = piece.ops
    assert isinstance(op, Affine | Identity)
    model = net(SCALES[name], g=GAMMA)
    assert torch.allclose(apply(op, images(), 2), model(images()))


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: 1 / x,
        lambda self, x: self.g / x,
        lambda self, x: x * x,
        lambda self, x: x * x.mean(),
        lambda self, x: x // 2,
        lambda self, x: x**2,
        lambda self, x: torch.div(x, 2, rounding_mode="floor"),
        lambda self, x: F.conv2d(x, x[:1, :, :3, :3]),
        lambda self, x: torch.cumsum(x, 1),
    ],
)
def test_what_is_not_affine_per_channel(forward: Any) -> None:
    assert not isinstance(last(forward, g=nn.Parameter(GAMMA)), Piece)


@pytest.mark.parametrize(
    "forward",
    [lambda self, x: x[:, 0], lambda self, x: x[1:], lambda self, x: x[..., None]],
)
def test_slices_that_drop_the_channels_or_a_sample(forward: Any) -> None:
    piece = last(forward)
    assert not isinstance(piece, Piece) or not isinstance(piece.by_rank(2), tuple)


def test_factors_by_row_are_of_another_rank_than_channels() -> None:
    rows = nn.Parameter(torch.randn(11, 1, dtype=torch.float64))
    assert last(lambda self, x: x * self.g, g=rows).rank_in == 1


@pytest.mark.parametrize(
    ("forward", "kind"),
    [
        (lambda self, x: F.pad(x, [1, 0, 2, 1]), Pad),
        (lambda self, x: F.pad(x, [-1, -1]), Pad),
        (lambda self, x: F.pad(x, [1, 1, 1, 1], mode="reflect"), Pad),
        (lambda self, x: F.avg_pool2d(x, 3, 2, 1), AvgPool),
        (lambda self, x: torch.index_select(x, 1, self.i), Select),
        (lambda self, x: x.narrow(1, 1, 2), Select),
        (lambda self, x: F.channel_shuffle(x, 3), Select),
        (lambda self, x: x.split([1, 2], 1)[1], Select),
        (lambda self, x: torch.chunk(x, 3, dim=1)[-1], Select),
        (lambda self, x: torch.zeros_like(x), Zero),
        (lambda self, x: x * 0, Zero),
        (lambda self, x: F.dropout(x, 0.5, False), Identity),
        (lambda self, x: x.contiguous(), Identity),
        (lambda self, x: x.clone(), Identity),
    ],
)
def test_calls_that_move_channels_and_positions(forward: Any, kind: type) -> None:
    found = lifter(live(net(forward, i=nn.Parameter(INDEX, requires_grad=False))), images())
    node = nodes(found)["output"].args[0]
    piece = found.lift(node)
    assert isinstance(piece, Piece)
    op = piece.ops[0] if piece.by_rank is None else piece.by_rank(2)[0]
    assert isinstance(op, kind)
    wanted = forward(net(forward, i=INDEX), images())
    assert torch.allclose(apply(op, images(), 2), wanted)


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda self, x: F.dropout(x, 0.5, True), "dropout is in training mode"),
        (lambda self, x: F.batch_norm(x, None, None, training=True), "training mode"),
        (lambda self, x: F.avg_pool2d(x, 3, 2, ceil_mode=True), "ceil_mode"),
        (lambda self, x: self.c(x) + F.conv2d(x, self.c.weight), "is read more than once"),
    ],
)
def test_reasons(forward: Any, reason: str) -> None:
    found = lifter(live(net(forward, c=conv(padding=0))), images())
    lifted = [found.lift(node) for node in found.capture.graph.nodes]
    assert any(reason in text for text in lifted if isinstance(text, str)), lifted


def test_sums_have_a_branch_for_each_value() -> None:
    piece = last(lambda self, x: sum([self.c(x), x * 2, x]), c=conv(3, 3))
    assert piece.join == "sum"
    assert len(piece.sources) in (2, 3)
    assert last(lambda self, x: torch.cat([x, self.c(x)], 1), c=conv(3, 3)).join == "concat"


def test_a_node_is_lifted_anew_when_what_it_reads_changes() -> None:
    found = lifter(live(net(lambda self, x: self.c(x.relu()) * 2, c=conv())), images())
    by_name = nodes(found)
    before = found.lift(by_name["mul"])
    assert found.lift(by_name["mul"]) is before
    by_name["mul"].replace_input_with(by_name["c"], by_name["relu"])
    assert found.lift(by_name["mul"]).sources == (by_name["relu"],)
