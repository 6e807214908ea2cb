"""Layers, sums and identities in their rarer spellings: what an expert would see in them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import refold
from helpers.nightly import some
from helpers.traps import gap, images, live

EXACT = 1e-10
Run = Callable[["Spelled", Tensor], Tensor]


class Spelled(nn.Module):
    """Two layers, a matrix and a weight by channel, and a norm behind what a function does."""

    def __init__(self, run: Run, norm: nn.Module) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.matrix, self.weight = (
            nn.Parameter(torch.randn(4, 3)),
            nn.Parameter(torch.rand(4, 1, 1)),
        )
        self.norm, self.run = norm, run

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.run(self, x))


def rows(net: Spelled, x: Tensor) -> Tensor:
    return torch.einsum("...c,oc->...o", x.mean((2, 3)), net.matrix)


def dotted(net: Spelled, x: Tensor) -> Tensor:
    return torch.tensordot(x.mean((2, 3)), net.matrix.T, dims=1)


def from_the_left(net: Spelled, x: Tensor) -> Tensor:
    return (net.matrix @ x.flatten(2)).view(x.shape[0], 4, *x.shape[2:])


LAYERS: dict[str, tuple[Run, bool]] = {
    "einsum of maps": (lambda n, x: torch.einsum("bchw, oc -> bohw", x, n.matrix), True),
    "einsum, weight first": (lambda n, x: torch.einsum("co,bchw->bohw", n.matrix.T, x), True),
    "einsum of rows": (rows, False),
    "tensordot": (dotted, False),
    "matrix from the left": (from_the_left, True),
}
ONES: dict[str, Run] = {
    "power of one": lambda n, x: n.one(x) ** 1,
    "maximum with itself": lambda n, x: (lambda y: torch.maximum(y, y))(n.one(x)),
    "turned by mT, and back": lambda n, x: n.one(x).mT.mT,
    "roll by nothing": lambda n, x: n.one(x).roll((0, 0), (2, 3)),
    "repeated once": lambda n, x: n.one(x).repeat(1, 1, 1, 1),
    "pool of one": lambda n, x: F.max_pool2d(n.one(x), 1, stride=1),
    "shuffle of one": lambda n, x: F.pixel_shuffle(n.one(x), 1),
    "dropout of whole maps": lambda n, x: F.feature_alpha_dropout(n.one(x), 0.3, n.training),
    "resized by one": lambda n, x: nn.Upsample(scale_factor=1)(n.one(x)),
    "mean of a stack": lambda n, x: torch.stack([n.one(x), n.two(x)]).mean(0),
    "addcmul of two": lambda n, x: torch.addcmul(n.one(x), n.two(x), n.weight),
    "lerp by channel": lambda n, x: torch.lerp(n.one(x), n.two(x), n.weight),
}


@pytest.mark.parametrize("name", some(LAYERS, keep=("einsum of maps", "matrix from the left")))
def test_a_layer_that_is_spelled_as_a_product_takes_its_norm_in(name: str) -> None:
    run, of_maps = LAYERS[name]
    model = live(Spelled(run, nn.BatchNorm2d(4) if of_maps else nn.BatchNorm1d(4)))
    folded = refold.reparameterize(model, images())
    assert not refold.plan(model, images()).refusals
    assert not any(isinstance(part, nn.modules.batchnorm._NormBase) for part in folded.modules())
    for x in (images(), images(1, 3, 5, 8)):
        assert gap(model, folded, x) < EXACT


@pytest.mark.parametrize("name", some(ONES, keep=("turned by mT, and back", "lerp by channel")))
def test_what_changes_nothing_is_no_obstacle(name: str) -> None:
    model = live(Spelled(ONES[name], nn.BatchNorm2d(4)))
    folded = refold.reparameterize(model, images())
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    convs = [part for part in folded.modules() if isinstance(part, nn.Conv2d)]
    used = {"mean of a stack", "lerp by channel", "addcmul of two"}
    assert len(convs) == (1 if name in used else 2)  # the other one is called by nothing
    assert gap(model, folded, 10 * images(2, 3, 6, 7)) < EXACT


OTHERS: dict[str, Run] = {
    "einsum over height": lambda n, x: torch.einsum("bchw,oh->bcow", n.two(x)[:, :, :3], n.matrix),
    "power of two": lambda n, x: n.one(x) ** 2,
    "roll by one": lambda n, x: n.one(x).roll(1, 2),
    "minimum of two": lambda n, x: torch.minimum(n.one(x), n.two(x)),
    "repeated twice": lambda n, x: n.one(x).repeat(1, 1, 1, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", some(OTHERS, keep=2))
def test_what_only_looks_like_it_keeps_its_value(name: str) -> None:
    model = live(Spelled(OTHERS[name], nn.BatchNorm2d(4)))
    folded = refold.reparameterize(model, images())
    assert gap(model, folded, 10 * images(2, 3, 6, 7)) < EXACT
