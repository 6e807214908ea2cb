"""Partitions laid out twice, as in a stranger's RepMLP: one linear layer all the same.

Oracles: the network itself in float64, and, for what must stay, the layers that remain.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import refold
from blocks.cells import enliven, error
from helpers.nightly import rare
from helpers.released_repmlp import GatedPerceptron, Net, Perceptron
from refold.blocks import RepMLPBlock

EXACT = 1e-9


def live(model: nn.Module) -> nn.Module:
    model = model.double().eval()
    enliven(model, torch.Generator().manual_seed(0))
    return model


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def layers(model: nn.Module) -> list[nn.Module]:
    kinds = nn.Conv2d | nn.Linear | nn.modules.batchnorm._BatchNorm
    return [part for part in model.modules() if isinstance(part, kinds)]


def kinds(model: nn.Module) -> list[str]:
    return sorted(type(part).__name__ for part in layers(model))


@pytest.mark.parametrize("channels", [(4, 6), *rare((4, 4), (6, 4))])
@pytest.mark.parametrize(
    ("size", "partition"), [((8, 8), (4, 4)), ((8, 3), (4, 3)), ((5, 4), (5, 4)), ((6, 9), (3, 3))]
)
@pytest.mark.parametrize("kernels", [None, (1,), (1, 3)])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_first_repmlp_is_three_linear_layers(
    channels: Any, size: Any, partition: Any, kernels: Any, groups: int
) -> None:
    model = live(Perceptron(channels, size, partition, groups, kernels))
    x = noise(3, channels[0], *size)
    folded = refold.reparameterize(model, x)
    with torch.no_grad():
        assert error(model(x), folded(x)) <= EXACT
        assert error(model(x[:1]), folded(x[:1])) <= EXACT
    wanted = ["Conv2d"] if size == partition else ["Conv2d", "Linear", "Linear"]
    assert kinds(folded) == wanted
    [fc3] = [part for part in layers(folded) if isinstance(part, nn.Conv2d)]
    assert (fc3.kernel_size, fc3.groups) == ((1, 1), groups)


@pytest.mark.parametrize(("sets", "size"), [(1, (8, 4)), (2, (8, 8)), (4, (4, 4)), (8, (4, 8))])
def test_the_block_with_sets_is_three_linear_layers(sets: int, size: tuple[int, int]) -> None:
    """Its sizes come from `x.size()`, handed on as `*shape`; a norm tells how many there are."""
    model = live(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), GatedPerceptron(8, (4, 4), sets)))
    x = noise(2, 8, *size)
    folded = refold.reparameterize(model, x)
    with torch.no_grad():
        assert error(model(x), folded(x)) <= EXACT
        larger = noise(3, 8, 12, 8)
        assert error(model(larger), folded(larger)) <= EXACT
    assert kinds(folded[2]) == ["Conv2d", "Conv2d", "Conv2d"]


@pytest.mark.slow
@pytest.mark.parametrize("cut", [1, 2])
def test_the_whole_network_keeps_one_norm_a_unit(cut: int) -> None:
    model, x = live(Net(cut=cut)), noise(2, 3, 32, 32)
    plan = refold.plan(model, x)
    folded = plan.apply()
    with torch.no_grad():
        assert error(model(x), folded(x)) <= EXACT
    norms = [path for path, part in folded.named_modules() if isinstance(part, nn.BatchNorm2d)]
    assert norms == [f"stages.{i}.prebn1" for i in ("0.0", "0.1", "1.0")]
    assert len(layers(folded)) == 1 + 3 * 5 + 1 + 1 + len(norms)
    text = str(plan)
    for part in ("fc3 + fc3_bn + repconv1.conv + repconv1.bn + repconv3.conv", "head_norm + head"):
        assert part in text


class Twice(nn.Module):
    """Rows and maps of one value, added after a layout that a variant may spoil."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.variant = variant
        self.fc = nn.Conv2d(16, 16, 1)
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        parts = x.reshape(-1, 4, 2, 2, 2, 2).permute(0, 2, 4, 1, 3, 5)
        maps = parts.reshape(-1, 1, 4, 4)
        if self.variant == "in place":
            rows = parts.reshape(-1, 16, 1, 1)
            maps.relu_()
        elif self.variant == "other order":
            rows = parts.permute(0, 1, 2, 4, 5, 3).reshape(-1, 16, 1, 1)
        else:
            rows = parts.reshape(-1, 16, 1, 1)
        one = self.fc(rows).reshape(-1, 2, 2, 4, 2, 2)
        two = self.conv(maps).reshape(-1, 2, 2, 4, 2, 2)
        if self.variant == "read twice":
            return one + two, one * 2
        if self.variant == "scaled":
            return torch.add(one, two, alpha=3)
        return one + two


@pytest.mark.parametrize("variant", ["plain", "in place", "other order", "read twice", "scaled"])
def test_only_what_is_the_same_value_is_one(variant: str) -> None:
    model, x = live(Twice(variant)), noise(3, 4, 4, 4)
    folded = refold.reparameterize(model, x)
    with torch.no_grad():
        wanted, found = model(x.clone()), folded(x.clone())
    pairs = zip(wanted, found, strict=True) if isinstance(wanted, tuple) else [(wanted, found)]
    assert all(error(one, other) <= EXACT for one, other in pairs)
    assert len(layers(folded)) == (1 if variant == "plain" else 2)


def test_both_ways_of_writing_it_give_the_same_matrix() -> None:
    ours = RepMLPBlock(4, 6, img_size=8, partition=4, groups=2, kernels=(1, 3))
    theirs = live(Perceptron((4, 6), (8, 8), (4, 4), 2, (1, 3)))
    theirs.load_state_dict(live(ours).state_dict())
    x = noise(2, 4, 8, 8)
    one, two = (refold.reparameterize(model, x) for model in (ours, theirs))
    rows = [[p for p in layers(model) if isinstance(p, nn.Conv2d)] for model in (one, two)]
    [[first], [second]] = rows
    torch.testing.assert_close(first.weight, second.weight, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(first.bias, second.bias, rtol=1e-12, atol=1e-12)
