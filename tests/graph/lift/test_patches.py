"""Windows of a map before a matrix (`unfold`) are a convolution, in every spelling.

Random statistics and scales of both signs; odd sizes, strides, dilations and paddings. The control
reads the taps of a window in another order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import refold
from helpers.traps import EXACT, WRONG, gap, images, live, net

WINDOWS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "padded": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": (3, 2), "stride": 2, "padding": (1, 0)},
    "dilated": {"kernel_size": 3, "dilation": (2, 1), "padding": 2, "stride": (1, 2)},
    "blocks": {"kernel_size": (2, 3), "stride": (2, 3)},
    "points": {"kernel_size": 1},
}


class Calls(TorchFunctionMode):
    """Counts functions by their names."""

    def __init__(self) -> None:
        self.names = Counter[str]()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names[getattr(func, "__name__", "")] += 1
        return func(*args, **(kwargs or {}))


def calls(model: nn.Module, x: Tensor) -> Counter[str]:
    with Calls() as seen, torch.no_grad():
        model(x)
    return seen.names


def folded(model: nn.Module, *examples: Tensor) -> nn.Module:
    """Fold in float64; the result gives the same on other maps, and on the same once more."""
    result = refold.reparameterize(live(model), examples[0])
    for x in (*examples, images(1, 3, 14, 12), images(3, 3, 8, 13), examples[0]):
        assert gap(model, result, x) <= EXACT
    return result


def taps(window: dict[str, Any]) -> int:
    return 3 * F.unfold(torch.zeros(1, 1, 20, 20), **window).shape[1]


def by_linear(window: dict[str, Any], out: int) -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.mix(F.unfold(x, **window).transpose(1, 2)).relu()

    return net(forward, mix=nn.Linear(taps(window), out))


def by_matrix(window: dict[str, Any], out: int) -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return (self.weight @ self.cut(x)).relu()

    made = net(forward, cut=nn.Unfold(**window))
    made.weight = nn.Parameter(torch.randn(out, taps(window)))
    return made


def by_conv(window: dict[str, Any], out: int) -> nn.Module:
    return nn.Sequential(nn.Unfold(**window), nn.Conv1d(taps(window), out, 1), nn.ReLU())


def by_einsum(window: dict[str, Any], out: int) -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.einsum("ncl,oc->nol", F.unfold(x, **window), self.weight).relu()

    made = net(forward)
    made.weight = nn.Parameter(torch.randn(out, taps(window)))
    return made


SPELLED: dict[str, Callable[[dict[str, Any], int], nn.Module]] = {
    "linear": by_linear,
    "matmul": by_matrix,
    "conv1d": by_conv,
    "einsum": by_einsum,
}


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("spelling", SPELLED)
def test_windows_and_a_matrix_are_a_convolution(spelling: str, window: str) -> None:
    x, model = images(2, 3, 11, 9), SPELLED[spelling](WINDOWS[window], 5)
    before = calls(live(model), x)
    result = folded(model, x)
    after = calls(result, x)
    assert (before["unfold"], after["unfold"], after["conv2d"]) == (1, 0, 1)
    assert after["linear"] + after["matmul"] + after["conv1d"] + after["einsum"] == 0


def test_another_order_of_taps_would_show() -> None:
    x, model = images(2, 3, 11, 9), live(by_linear(WINDOWS["plain"], 5))
    weight = model.mix.weight.detach()
    [conv] = [m for m in folded(model, x).modules() if isinstance(m, nn.Conv2d)]
    assert torch.equal(conv.weight, weight.unflatten(1, (3, 3, 3)))
    turned = weight.unflatten(1, (3, 3, 3)).transpose(2, 3)
    naive = F.conv2d(x, turned, model.mix.bias.detach()).flatten(2).transpose(1, 2).relu()
    assert float((naive - model(x)).abs().max().detach()) >= WRONG


def test_groups_stay_groups() -> None:
    model = nn.Sequential(nn.Unfold(2), nn.Conv1d(12, 6, 1, groups=3), nn.BatchNorm1d(6), nn.ReLU())
    [conv] = [m for m in folded(model, images(2, 3, 7, 9)).modules() if isinstance(m, nn.Conv2d)]
    assert (conv.groups, conv.out_channels) == (3, 6)


def test_groups_across_channels_stay_apart() -> None:
    model = nn.Sequential(nn.Unfold(2), nn.Conv1d(12, 6, 1, groups=6), nn.ReLU())
    result = folded(model, images(2, 3, 7, 9))
    assert [type(m) for m in result] == [nn.Unfold, nn.Conv1d, nn.ReLU]


def as_map(self: Any, x: Tensor) -> Tensor:
    n, _, h, w = x.shape
    rows = self.mix(F.unfold(self.first(x), 3, padding=self.ring).transpose(1, 2))
    less = 2 - 2 * self.ring
    return self.last(rows.transpose(1, 2).view(n, -1, h - less, w - less)).relu()


def laid_out(self: Any, x: Tensor) -> Tensor:
    cut = F.unfold(self.first(x), 3, padding=self.ring)
    less = 2 - 2 * self.ring
    size = (x.shape[2] - less, x.shape[3] - less)
    return self.last(F.fold(self.mix(cut.transpose(1, 2)).transpose(1, 2), size, 1)).relu()


def ringed(forward: Callable[..., Tensor], **layers: nn.Module) -> nn.Module:
    model = net(forward, mix=nn.Linear(27, 5), **layers)
    model.ring, model.first, model.last = 1, nn.Identity(), nn.BatchNorm2d(5)
    return model


def as_large(self: Any, x: Tensor) -> Tensor:
    n, _, h, w = x.shape
    rows = self.mix(F.unfold(x, 3, padding=1).transpose(1, 2))
    return self.last(rows.transpose(1, 2).view(n, 5, h, w)).relu()


def laid_as_large(self: Any, x: Tensor) -> Tensor:
    rows = self.mix(F.unfold(x, 3, padding=1).transpose(1, 2))
    return self.last(F.fold(rows.transpose(1, 2), x.shape[2:], (1, 1))).relu()


@pytest.mark.parametrize("forward", [as_large, laid_as_large])
def test_rows_that_become_maps_again_leave_no_layout(forward: Callable[..., Tensor]) -> None:
    x = images(2, 3, 11, 9)
    names = calls(folded(ringed(forward), x), x)
    layouts = ("view", "reshape", "flatten", "transpose", "fold", "unfold")
    assert [names[name] for name in ("conv2d", *layouts)] == [1, *(0 for _ in layouts)]


def test_windows_beside_a_convolution_are_one() -> None:
    def beside(self: Any, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        rows = self.mix(F.unfold(x, 3, padding=1).transpose(1, 2)).transpose(1, 2)
        return (self.last(rows.reshape(n, -1, h, w)) + self.point(x)).relu()

    result = folded(ringed(beside, point=nn.Conv2d(3, 5, 1)), images(2, 3, 11, 9))
    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
    assert [type(m) for m in result.modules() if isinstance(m, kinds)] == [nn.Conv2d]


OTHER_SIDES: dict[str, Callable[[Tensor], tuple[Any, Any]]] = {
    "turned": lambda x: (x.shape[3], x.shape[2]),
    "of a map that is as large here": lambda x: F.adaptive_avg_pool2d(x, (9, 9)).shape[2:],
    "numbers": lambda x: (9, 9),
}


@pytest.mark.parametrize("name", OTHER_SIDES)
@pytest.mark.parametrize("by_fold", [False, True])
def test_rows_laid_out_otherwise_stay(name: str, by_fold: bool) -> None:
    """On the square example they are the map again; a map of another size tells."""

    def forward(self: Any, x: Tensor) -> Tensor:
        rows = self.mix(F.unfold(x, 3, padding=1).transpose(1, 2)).transpose(1, 2)
        sides = OTHER_SIDES[name](x)
        made = F.fold(rows, sides, 1) if by_fold else rows.reshape(-1, 5, *sides)
        return self.last(made).relu()

    model, x, wide = live(ringed(forward)), images(2, 3, 9, 9), images(2, 3, 3, 27)
    result = refold.reparameterize(model, x)
    for other in (x, wide):
        assert gap(model, result, other) <= EXACT
    assert calls(result, x)["unfold"] == 0


@pytest.mark.parametrize("forward", [as_map, laid_out])
@pytest.mark.parametrize("ring", [0, 1])
def test_norms_on_both_sides(forward: Callable[..., Tensor], ring: int) -> None:
    """The one in front goes in where no ring of zeros would have to be shifted with it."""
    layers = {"first": nn.BatchNorm2d(3), "mix": nn.Linear(27, 5), "last": nn.BatchNorm2d(5)}
    model = net(forward, **layers)
    model.ring = ring
    x = images(2, 3, 11, 9)
    result = folded(model, x)
    left = [m for m in result.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(left) == ring
    kept = {item.where: item.reason for item in refold.plan(model, x).kept}
    if ring:
        assert "zero padding" in kept["first + reparam_conv"]


def test_a_scale_in_front_goes_in_despite_a_ring() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.mix(F.unfold(x * self.scale, 3, padding=1).transpose(1, 2)).relu()

    model = net(forward, mix=nn.Linear(27, 5))
    model.scale = nn.Parameter(torch.randn(3, 1, 1))
    assert calls(folded(model, images(2, 3, 11, 9)), images(2, 3, 11, 9))["mul"] == 0


def test_a_ring_laid_out_before_goes_in() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        ringed = F.pad(self.norm(x), (1, 1, 1, 1), mode="reflect")
        return self.mix(F.unfold(ringed, 3).transpose(1, 2)).relu()

    model = net(forward, norm=nn.BatchNorm2d(3), mix=nn.Linear(27, 5))
    [conv] = [m for m in folded(model, images(2, 3, 11, 9)).modules() if isinstance(m, nn.Conv2d)]
    assert (conv.padding_mode, conv.padding) == ("reflect", (1, 1))


@pytest.mark.parametrize("ring", [0, 1])
def test_windows_that_two_read_are_laid_out_once(ring: int) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        rows = F.unfold(self.norm(x), 3, padding=ring).transpose(1, 2)
        return self.one(rows).relu() * self.two(rows).sigmoid()

    model = net(forward, norm=nn.BatchNorm2d(3), one=nn.Linear(27, 5), two=nn.Linear(27, 5))
    x = images(2, 3, 11, 9)
    result = folded(model, x)
    assert calls(result, x)["unfold"] == 1
    assert [type(m) for m in (result.one, result.two)] == [nn.Linear, nn.Linear]
    assert isinstance(result.norm, nn.BatchNorm2d) == bool(ring)
    if ring:
        [kept] = refold.plan(model, x).kept
        assert "a constant meets the zeros in windows at the border" in kept.reason


@pytest.mark.parametrize("written_out", [False, True])
def test_where_the_size_of_windows_is_asked_the_norms_still_go(written_out: bool) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        cut = F.unfold(self.first(x), 3, stride=2)
        n, _, count = cut.shape
        rows = self.weight @ cut if written_out else self.mix(cut)
        return self.last(rows).view(n, 5, count, 1).relu()

    layers = {"first": nn.BatchNorm2d(3), "mix": nn.Conv1d(27, 5, 1), "last": nn.BatchNorm1d(5)}
    model, x = net(forward, **layers), images(2, 3, 11, 9)
    model.weight = nn.Parameter(torch.randn(5, 27))
    result = folded(model, x)
    assert not [m for m in result.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    [kept] = refold.plan(model, x).kept
    assert kept.where == f"unfold + {'reparam_conv' if written_out else 'mix'} + view"
    assert kept.reason == "the code asks for the size of unfold, and the fold would remove it"


def test_windows_that_a_function_reads_stay() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        cut = self.cut(self.norm(x))
        return cut.softmax(1).relu()

    model, x = net(forward, norm=nn.BatchNorm2d(3), cut=nn.Unfold(3)), images(2, 3, 11, 9)
    folded(model, x)
    [kept] = refold.plan(model, x).kept
    assert kept.reason.endswith("it comes from x and goes to softmax through cut")


def test_overlapping_sums_of_windows_stay() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        rows = self.mix(F.unfold(x, 3, padding=1).transpose(1, 2)).transpose(1, 2)
        return self.norm(F.fold(rows, x.shape[2:], 3, padding=1)).relu()

    model = net(forward, mix=nn.Linear(27, 27), norm=nn.BatchNorm2d(3))
    result = folded(model, images(2, 3, 11, 9))
    assert isinstance(result.norm, nn.BatchNorm2d)


def test_the_method_of_that_name_is_another_function() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.mix(x.unfold(3, 3, 2)).relu()

    model = net(forward, mix=nn.Linear(3, 5))
    assert calls(folded(model, images(2, 3, 11, 9)), images(2, 3, 11, 9))["linear"] == 1


def test_a_matrix_whose_size_is_asked_still_takes_windows_in() -> None:
    """As the vision tower of Llama 4 reads its patches."""

    def forward(self: Any, x: Tensor) -> Tensor:
        rows = self.mix(F.unfold(self.norm(x), 4, stride=4).permute(0, 2, 1))
        n, count, width = rows.shape
        return torch.cat([rows.reshape(n * 1, count, width), self.token.expand(n, 1, width)], 1)

    model = net(forward, norm=nn.BatchNorm2d(3), mix=nn.Linear(48, 5))
    model.token = nn.Parameter(torch.randn(5))
    result = folded(model, images(2, 3, 12, 9))
    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
    assert [type(m) for m in result.modules() if isinstance(m, kinds)] == [nn.Conv2d]
