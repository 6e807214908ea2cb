"""Residuals in every form of code: functions, other ranks, nests, exported graphs, loose roots."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.random_residuals import Net, additions, pair
from refold.residuals import Removal, removal
from refold.torch_versions import module_of

pytestmark = pytest.mark.slow

MAP = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Functional(nn.Module):
    """Weights of its own, functions, and a factor in the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(6, 4, 3, 3)), nn.Parameter(torch.randn(6))
        self.w2 = nn.Parameter(torch.randn(4, 6, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu6(F.conv2d(x, self.w1, self.b1, padding=1))
        return torch.add(F.conv2d(inner, self.w2, padding=1), x, alpha=2)


def _nested(net: Net, x: Tensor) -> Tensor:
    inner = net.a(x)
    inner = inner + net.f(inner)
    return x + net.b(torch.relu(inner))


def _leaky(net: Net, x: Tensor) -> Tensor:
    return x + net.b(F.leaky_relu(net.a(x), 0.3))


def _chosen(index: list[int], before: int, after: int) -> Any:
    """Return a shortcut that takes some channels, and puts zeros around them."""

    def forward(net: Net, x: Tensor) -> Tensor:
        return net.f(x) + F.pad(x[:, index], (0, 0, 0, 0, before, after))

    return forward


def _other_order(net: Net, x: Tensor) -> Tensor:
    return net.f(x) + x.flip(1)


CHOSEN = {
    "some channels": (_chosen([0, 1], 0, 2), 2),
    "one, elsewhere": (_chosen([3], 2, 1), 1),
    "out of order": (_chosen([2, 0], 1, 1), 2),
    "one of them twice": (_chosen([1, 1, 3], 1, 0), 4),  # a matrix instead: all ride
    "all, reversed": (_other_order, 4),
}


def two(size: int, rank: int = 2, width: int = 4, **options: object) -> dict[str, nn.Module]:
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    first = layer(4, width, size, padding=size // 2, **options)
    return {"a": first, "b": layer(width, 4, 3, padding=1)}


FORMS: dict[str, tuple[nn.Module, Tensor]] = {
    "functions": (Functional(), MAP),
    "one axis": (Net(_leaky, **two(5, 1)), MAP.flatten(2)),
    "three axes": (Net(_leaky, **two(3, 3, groups=4)), MAP[:, :, :, :, None].repeat(1, 1, 1, 1, 3)),
    "nested": (Net(_nested, f=pair(nn.ReLU()), **two(3)), MAP),
    "reflected": (Net(_leaky, **two(3, padding_mode="reflect")), MAP),
    "circular": (Net(_leaky, **two(5, padding_mode="circular")), MAP),
}


def check(done: Removal, model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        for scale in (1.0, 9.0):
            expected, found = model(x * scale), done.model(x * scale)
            assert float((expected - found).abs().max() / expected.abs().max()) < 1e-9
    assert additions(model, x) == len(done.steps) > 0
    assert additions(done.model, x) == 0


@pytest.mark.parametrize("form", FORMS)
def test_a_residual_is_found_by_what_it_computes(form: str) -> None:
    model, x = FORMS[form]
    done = removal(model.double().eval(), x)
    assert done.kept == ()
    check(done, model, x)


@pytest.mark.parametrize("form", CHOSEN)
@pytest.mark.parametrize("act", [nn.ReLU6(), nn.PReLU(6)], ids=["relu6", "prelu"])
def test_channels_that_a_shortcut_leaves_out_do_not_ride_along(form: str, act: nn.Module) -> None:
    forward, riding = CHOSEN[form]
    model = Net(forward, f=pair(act)).double().eval()
    done = removal(model, MAP)
    assert done.kept == ()
    check(done, model, MAP)
    [first, *_] = [part for part in done.model.modules() if isinstance(part, nn.Conv2d)]
    assert first.out_channels == 6 + riding


def test_a_grouped_branch_carries_the_chosen_channels() -> None:
    body = nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU6(), nn.Conv2d(8, 8, 3, 1, 1, groups=4))
    model = Net(_chosen([1, 2], 2, 0), f=nn.Sequential(body, nn.ReLU6(), nn.Conv2d(8, 4, 1)))
    done = removal(model.double().eval(), MAP)
    assert done.kept == ()
    check(done, model, MAP)
    widths = [part.in_channels for part in done.model.modules() if isinstance(part, nn.Conv2d)]
    assert widths == [4, 10, 10]


def test_an_exported_program_loses_its_residuals() -> None:
    blocks = [Net(lambda net, x: x + net.f(x), f=pair(act)) for act in (nn.ReLU6(), nn.LeakyReLU())]
    program = torch.export.export(nn.Sequential(*blocks).eval(), (MAP,))
    model = module_of(program)
    for module in model.modules():
        module.training = False
    check(removal(model, MAP), model, MAP)


def test_blocks_under_code_that_cannot_be_followed_lose_theirs_and_the_root_is_named() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.block(x) if x.sum() > -1e9 else x

    block = Net(lambda net, x: x + net.f(x), f=pair(nn.ReLU6()))
    model = Net(forward, block=block).double().eval()
    done = removal(model, MAP)
    assert [kept.where for kept in done.kept] == [""]
    assert "could not be followed" in done.kept[0].reason
    check(done, model, MAP)
