"""Padded maps whose border is overwritten with the norm's image of zero: a padding in front."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import refold
from helpers.nightly import some
from helpers.traps import live

Write = Callable[[Tensor, Tensor, int, int], None]
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def ring(y: Tensor, v: Tensor, p: int, rank: int) -> None:
    """Overwrite the whole border, side by side."""
    for axis in range(2, 2 + rank):
        full = [slice(None)] * (2 + rank)
        full[axis] = slice(0, p)
        y[tuple(full)] = v
        full[axis] = slice(-p, None)
        y[tuple(full)] = v


def ellipsis(y: Tensor, v: Tensor, p: int, rank: int) -> None:
    y[..., :p], y[..., -p:] = v, v
    y[..., :p, :], y[..., -p:, :] = v, v


class Padded(nn.Module):
    """A norm, a padding, and a border of what a function writes."""

    def __init__(self, rank: int, width: int, write: Write, shift: float = 0.0) -> None:
        super().__init__()
        self.bn, self.width, self.shift = NORMS[rank](4), width, shift
        self.write, self.rank = write, rank

    def forward(self, x: Tensor) -> Tensor:
        bn = self.bn
        y = F.pad(bn(x), [self.width] * (2 * self.rank))
        v = (
            bn.bias.detach()
            - bn.running_mean * bn.weight.detach() / (bn.running_var + bn.eps).sqrt()
        )
        value = v.view(1, -1, *(1,) * self.rank) + self.shift
        self.write(y, value, self.width, self.rank)
        return y


def image(rank: int) -> Tensor:
    noise = torch.Generator().manual_seed(rank)
    return torch.randn(2, 3, *range(7, 7 + rank), dtype=torch.float64, generator=noise)


def net(rank: int, width: int, write: Write, **options: float) -> nn.Module:
    first = CONVS[rank](3, 4, 1, bias=False)
    last = CONVS[rank](4, 5, 2 * width + 1, bias=False)
    return live(nn.Sequential(first, Padded(rank, width, write, **options), last, NORMS[rank](5)))


def norms(model: nn.Module) -> int:
    return sum(isinstance(part, tuple(NORMS.values())) for part in model.modules())


def equal(model: nn.Module, folded: nn.Module, rank: int) -> None:
    for x in (image(rank), 30 * image(rank), image(rank)[:1, :, 2:], torch.zeros_like(image(rank))):
        torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_border_of_the_norms_image_of_zero_folds(rank: int, width: int) -> None:
    model = net(rank, width, ring)
    folded = refold.reparameterize(model, image(rank), allow_growth=True)
    assert norms(folded) == 0
    assert len([part for part in folded.modules() if isinstance(part, CONVS[rank])]) == 1
    equal(model, folded, rank)


def test_the_ellipsis_is_another_spelling() -> None:
    model = net(2, 1, ellipsis)
    folded = refold.reparameterize(model, image(2))
    assert norms(folded) == 0
    equal(model, folded, 2)


def test_padding_with_zeros_behind_the_norm_is_another_function() -> None:
    """The control: what a fold that forgot the border would give."""
    model = net(2, 1, ring)
    naive = nn.Sequential(model[0], model[1].bn, nn.ZeroPad2d(1), model[2], model[3])
    assert not torch.allclose(naive(image(2)), model(image(2)), atol=1e-3)


def missing(y: Tensor, v: Tensor, p: int, rank: int) -> None:
    y[:, :, :p], y[:, :, -p:], y[:, :, :, :p] = v, v, v


def wider(y: Tensor, v: Tensor, p: int, rank: int) -> None:
    ring(y, v, p + 1, rank)


def inside(y: Tensor, v: Tensor, p: int, rank: int) -> None:
    ring(y, v, p, rank)
    y[:, :, 2:3] = v


def half(y: Tensor, v: Tensor, p: int, rank: int) -> None:
    ring(y, v, p, rank)
    y[:1, :, :p] = 0


def doubled(y: Tensor, v: Tensor, p: int, rank: int) -> None:
    ring(y, 2 * v, p, rank)


@pytest.mark.parametrize("write", [missing, wider, inside, half, doubled])
def test_any_other_border_stays_as_it_is(write: Write) -> None:
    model = net(2, 1, write)
    folded = refold.reparameterize(model, image(2))
    equal(model, folded, 2)
    assert norms(folded) >= 1


def test_the_account_says_which_numbers_the_border_should_hold() -> None:
    model = live(net(2, 1, doubled))
    reasons = [kept.reason for kept in refold.plan(model, image(2)).kept]
    assert "its border holds other numbers than 1.bn makes of 0" in reasons


def test_a_value_a_little_off_is_no_rounding() -> None:
    model = net(2, 1, ring, shift=1e-6)
    folded = refold.reparameterize(model, image(2))
    equal(model, folded, 2)
    assert norms(folded) >= 1


class Edge(nn.Module):
    """A pointwise convolution, its bias around it, and a fixed kernel behind, as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 3, 1, 1)), nn.Parameter(torch.randn(4))
        self.scale = nn.Parameter(torch.randn(4, 1, 1, 1))
        sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]).repeat(4, 1, 1, 1)
        self.register_buffer("mask", sobel)

    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(F.conv2d(x, self.weight, self.bias), (1, 1, 1, 1), "constant", 0)
        ring(y, self.bias.view(1, -1, 1, 1), 1, 2)
        return F.conv2d(y, self.scale * self.mask, groups=4)


def test_a_bias_around_a_pointwise_convolution_folds() -> None:
    model = live(nn.Sequential(Edge(), nn.BatchNorm2d(4)))
    folded = refold.reparameterize(model, image(2), allow_growth=True)
    assert norms(folded) == 0
    assert [part for part in folded.modules() if isinstance(part, nn.Conv2d)]
    equal(model, folded, 2)


def test_a_reader_of_the_map_in_between_keeps_it() -> None:
    class Between(Padded):
        def forward(self, x: Tensor) -> Tensor:
            y = F.pad(self.bn(x), [1, 1, 1, 1])
            total = y.sum((2, 3), keepdim=True)
            v = (
                self.bn.bias
                - self.bn.running_mean * self.bn.weight / (self.bn.running_var + self.bn.eps).sqrt()
            )
            ring(y, v.view(1, -1, 1, 1), 1, 2)
            return y + total

    model = live(nn.Sequential(nn.Conv2d(3, 4, 1), Between(2, 1, ring), nn.Conv2d(4, 5, 3)))
    folded = refold.reparameterize(model, image(2))
    equal(model, folded, 2)


# other spellings of the same border, of one place at each edge


Spelling = Callable[[nn.Module, Tensor, Tensor], Tensor]


def copied(net: nn.Module, y: Tensor, v: Tensor) -> Tensor:
    y = F.pad(y, [1] * 4)
    for part in (y[:, :, :1], y[:, :, -1:], y[..., :1], y[..., -1:]):
        part.copy_(v)
    return y


def by_place(net: nn.Module, y: Tensor, v: Tensor) -> Tensor:
    y, v = F.pad(y, [1] * 4), v[..., 0]
    y[:, :, 0], y[:, :, -1], y[..., 0], y[..., -1] = v, v, v, v
    return y


def narrowed(net: nn.Module, y: Tensor, v: Tensor) -> Tensor:
    y = net.zeros(y)
    for axis in (2, 3):
        y.narrow(axis, 0, 1).copy_(v)
        y.narrow(axis, y.shape[axis] - 1, 1).copy_(v)
    return y


def added(net: nn.Module, y: Tensor, v: Tensor) -> Tensor:
    y = F.pad(y, [1] * 4)
    y[:, :, :1] += v
    y[:, :, -1:] += v
    y[:, :, 1:-1, :1] += v
    y[:, :, 1:-1, -1:] += v
    return y


def side_by_side(net: nn.Module, y: Tensor, v: Tensor) -> Tensor:
    n, c, h, w = y.shape
    row, column = v.expand(n, c, 1, w), v.expand(n, -1, h + 2, 1)
    return torch.cat([column, torch.cat([row, y, row], 2), column], dim=-1)


def masked(net: nn.Module, y: Tensor, v: Tensor) -> Tensor:
    return torch.where(net.inner, F.pad(y, [1] * 4), v)


def by_mask_of_its_size(net: nn.Module, y: Tensor, v: Tensor) -> Tensor:
    inner = F.pad(torch.ones_like(y[:1, :1]), [1] * 4)
    return F.pad(y, [1] * 4) * inner + v * (1 - inner)


def there_and_back(net: nn.Module, y: Tensor, v: Tensor) -> Tensor:
    return F.pad(y - v, [1] * 4) + v


def filled(net: nn.Module, y: Tensor, v: Tensor) -> Tensor:
    n, c, h, w = y.shape
    made = v.expand(n, c, h + 2, w + 2).clone()
    made[:, :, 1:-1, 1:-1] = y
    return made


def filled_to_sizes(net: nn.Module, y: Tensor, v: Tensor) -> Tensor:
    n, c, h, w = y.shape
    made = y.new_empty(n, c, h + 2, w + 2)
    made[:] = v
    made[:, :, 1 : h + 1, 1 : w + 1].copy_(y)
    return made


def asked_of_the_norm(net: nn.Module, y: Tensor, v: Tensor) -> Tensor:
    v, y = net.bn(y.new_zeros(1, 4, 1, 1)), F.pad(y, [1] * 4)
    y[:, :, :1], y[:, :, -1:], y[..., :1], y[..., -1:] = v, v, v, v
    return y


SPELLINGS = (
    *(copied, by_place, narrowed, added, side_by_side, masked, by_mask_of_its_size),
    *(there_and_back, filled, filled_to_sizes, asked_of_the_norm),
)


class Spelled(nn.Module):
    """A pointwise layer, its norm, a padding in some spelling, and a window with a norm."""

    def __init__(self, spelling: Spelling) -> None:
        super().__init__()
        self.first, self.bn = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.last, self.spelling = nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)), spelling
        self.zeros = nn.ZeroPad2d(1)
        inner = torch.zeros(9, 10, dtype=torch.bool)
        inner[1:-1, 1:-1] = True
        self.register_buffer("inner", inner)

    def forward(self, x: Tensor) -> Tensor:
        bn = self.bn
        v = bn.bias - bn.running_mean * bn.weight / (bn.running_var + bn.eps).sqrt()
        return self.last(self.spelling(self, bn(self.first(x)), v.view(1, -1, 1, 1)))


@pytest.mark.parametrize("spelling", some(SPELLINGS, keep=(narrowed, side_by_side, filled)))
def test_every_spelling_of_the_border_folds(spelling: Spelling) -> None:
    model = live(Spelled(spelling))
    folded = refold.reparameterize(model, image(2), allow_growth=True)
    assert norms(folded) == int(spelling is asked_of_the_norm)  # whose numbers are still read
    assert len([part for part in folded.modules() if isinstance(part, nn.Conv2d)]) == 1
    sizes = [(7, 8)] if spelling is masked else [(7, 8), (3, 5), (12, 9)]
    for height, width in sizes:
        x = torch.randn(3, 3, height, width, dtype=torch.float64)
        torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)


def three_from_the_top(net: nn.Module, y: Tensor, v: Tensor) -> Tensor:
    made = filled(net, y, v)
    made[:, :, 7:8] = v  # the last row but one of a map of height 7
    return made


def of_half_its_size(net: nn.Module, y: Tensor, v: Tensor) -> Tensor:
    n, c, h, w = y.shape
    made = v.expand(n, c, h + (h + 1) // 4, w + 2).clone()
    made[:, :, 1 : h + 1, 1 : w + 1] = y
    return made


def of_one_size(net: nn.Module, y: Tensor, v: Tensor) -> Tensor:
    y = F.pad(y, [1] * 4).index_fill(2, net.places, 0.0)
    return torch.where(net.inner, y, v)


def read_again(net: nn.Module, y: Tensor, v: Tensor) -> Tensor:
    return side_by_side(net, y, v) + y.mean((2, 3), keepdim=True)


def read_again_in_place(net: nn.Module, y: Tensor, v: Tensor) -> Tensor:
    made = side_by_side(net, y, v)
    made += y.mean((2, 3), keepdim=True)
    return made


def squared(net: nn.Module, y: Tensor, v: Tensor) -> Tensor:
    return F.pad((y - v) * (y - v), [1] * 4) + v


def sized_later(net: nn.Module, y: Tensor, v: Tensor) -> Tensor:
    return side_by_side(net, y, v) * y.shape[-1]


def written_later(net: nn.Module, y: Tensor, v: Tensor) -> Tensor:
    made = side_by_side(net, y, v)
    y.mul_(2)
    return made + y.mean((2, 3), keepdim=True)


NEARLY = (three_from_the_top, of_half_its_size, of_one_size, squared, sized_later, written_later)


@pytest.mark.parametrize(
    "spelling", some(NEARLY, keep=(of_half_its_size, sized_later, written_later))
)
def test_what_only_looks_like_such_a_border_stays(spelling: Spelling) -> None:
    model = live(Spelled(spelling))
    model.register_buffer("places", torch.tensor([4]))
    folded = refold.reparameterize(model, image(2), allow_growth=True)
    assert norms(folded) == 1
    for height, width in [(7, 8)] if spelling is of_one_size else [(7, 8), (3, 5), (12, 9)]:
        x = torch.randn(2, 3, height, width, dtype=torch.float64)
        torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("spelling", [read_again, read_again_in_place])
def test_others_read_what_lies_within_the_padding(spelling: Spelling) -> None:
    model = live(Spelled(spelling))
    folded = refold.reparameterize(model, image(2), allow_growth=True, check=False)
    assert norms(folded) == 0
    for height, width in [(7, 8), (3, 5), (1, 2)]:
        x = torch.randn(2, 3, height, width, dtype=torch.float64)
        torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)


class Expanded(nn.Module):
    """The block of FMEN: expanded, padded with the bias, convolved beside itself, reduced."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.reduce = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 3, 1)
        self.conv = nn.Conv2d(6, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = beside = self.expand(x)
        bias = self.expand.bias.view(1, -1, 1, 1)
        y = F.pad(y, (1, 1, 1, 1), "constant", 0)
        ring(y, bias, 1, 2)
        y = self.conv(y)
        y += beside
        y = self.reduce(y)
        y += x
        return y


def test_an_expansion_beside_its_own_convolution_is_one_convolution() -> None:
    model = live(nn.Sequential(Expanded(), nn.LeakyReLU(0.1), Expanded()))
    folded = refold.reparameterize(model, image(2))
    convs = [part for part in folded.modules() if isinstance(part, nn.Conv2d)]
    assert [conv.kernel_size for conv in convs] == [(3, 3)] * 2
    equal(model, folded, 2)
    with torch.no_grad():  # the ring of zeros that a careless fold would pad with
        convs[0].bias -= model[0].expand.bias.sum()
    assert not torch.allclose(folded(image(2)), model(image(2)))


def test_a_scale_and_a_shift_in_one_call_are_a_layer() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 3)
            self.gain = nn.Parameter(torch.randn(4, 1, 1))
            self.shift = nn.Parameter(torch.randn(4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            y = torch.addcmul(self.shift, self.first(x), self.gain)
            return self.last(copied(self, y, self.shift[None]))

    model = live(Scaled())
    folded = refold.reparameterize(model, image(2))
    names = [type(part).__name__ for part in folded.modules()]
    assert names.count("Conv2d") == 2
    assert [step.where for step in refold.plan(model, image(2)).steps]
    equal(model, folded, 2)
