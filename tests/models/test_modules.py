"""The parts that backbones are built from, against other people's and against their definitions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from timm.models.inception_resnet_v2 import Block8, Block17, Block35
from timm.models.xception import SeparableConv2d
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import inception as inceptions

import refold
from models.nets import alive, error
from refold.errors import InputError
from refold.models import ChannelShuffle, ScaledResidual, SeparableConv, TowerMaker, Towers
from refold.models.mobilefacenet import GlobalDepthwise
from refold.models.shufflenetv1 import ShuffleUnit
from refold.models.towers import TOWERS_A, TOWERS_B, TOWERS_C
from refold.workload import workload_of
from zoo.live import enliven, is_norm

TOLERANCE = 1e-9
make = TowerMaker()


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def folded_error(model: nn.Module, x: Tensor) -> tuple[nn.Module, float]:
    folded = refold.reparameterize(model, x)
    with torch.no_grad():
        return folded, error(model(x), folded(x))


# -- Inception ------------------------------------------------------------------------------------

THEIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], int, int]] = {
    "v3 A": (
        lambda: make.small_kernels(192, 32, factorised=False),
        lambda: inceptions.InceptionA(192, 32), 192, 9,
    ),
    "v3 C": (
        lambda: make.long_kernels(768, 128), lambda: inceptions.InceptionC(768, 128), 768, 9
    ),
    "v3 E": (lambda: make.wide(1280), lambda: inceptions.InceptionE(1280), 1280, 5),
    "Inception-ResNet A": (
        lambda: ScaledResidual(make, 320, TOWERS_A, 0.17),
        lambda: Block35(0.17), 320, 7,
    ),
    "Inception-ResNet B": (
        lambda: ScaledResidual(make, 1088, TOWERS_B, 0.1),
        lambda: Block17(0.1), 1088, 7,
    ),
    "Inception-ResNet C": (
        lambda: ScaledResidual(make, 2080, TOWERS_C, 1.0, act=False),
        lambda: Block8(no_relu=True), 2080, 5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", THEIRS)
def test_modules_are_torchvisions_and_timms(name: str) -> None:
    ours_of, theirs_of, channels, side = THEIRS[name]
    torch.manual_seed(0)
    theirs, x = theirs_of().double().eval(), noise(1, channels, side, side)
    enliven(theirs, (x,))
    ours: Any = ours_of().double().eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    pairs = zip(filter(is_norm, ours.modules()), filter(is_norm, theirs.modules()), strict=True)
    for norm, other in pairs:
        norm.eps = other.eps  # type: ignore[union-attr]
    with torch.no_grad():
        assert error(theirs(x), ours(x)) <= TOLERANCE
    folded, found = folded_error(ours, x)
    assert found <= TOLERANCE
    assert not any(map(is_norm, folded.modules()))


@pytest.mark.parametrize("order", ["parallel", "pool_conv", "conv_pool"])
def test_halvings_fold_exactly(order: Any) -> None:
    torch.manual_seed(0)
    model, x = make.reduction(8, 20, order).double().eval(), noise(1, 8, 11, 11)
    enliven(model, (x,))
    assert model(x).shape == (1, 20, 6, 6)
    folded, found = folded_error(model, x)
    assert found <= TOLERANCE
    assert not any(map(is_norm, folded.modules()))


def test_a_reduction_keeps_its_relu_and_is_not_merged_into_its_kernel() -> None:
    """1x1 then 3x3 are two convolutions as long as a ReLU stands between, and one without it."""
    torch.manual_seed(0)
    x = noise(1, 8, 9, 9)
    with_relu = make.tower(8, (2, 1), (8, 3)).double().eval()
    assert layers(folded_error(with_relu, x)[0]) == 2
    bare = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.Conv2d(8, 8, 3, padding=1)).double()
    folded, found = folded_error(bare.eval(), x)
    assert layers(folded) == 1
    assert found <= TOLERANCE


def layers(model: nn.Module) -> int:
    return sum(isinstance(part, nn.Conv2d) for part in model.modules())


@pytest.mark.parametrize(("order", "out"), [("parallel", 8), ("pool", 16)])
def test_a_halving_that_cannot_be_is_refused(order: Any, out: int) -> None:
    with pytest.raises(InputError, match="parallel, pool_conv, conv_pool"):
        make.reduction(8, out, order)


# -- separable convolutions -----------------------------------------------------------------------


def test_the_depthwise_first_order_is_xceptions() -> None:
    torch.manual_seed(0)
    theirs = SeparableConv2d(6, 10, 3, 1, 1).double()
    ours, x = SeparableConv(6, 10).double().eval(), noise(1, 6, 8, 8)
    enliven(ours, (x,))
    ours.load_state_dict(
        {"first.weight": theirs.conv1.weight, "second.conv.weight": theirs.pointwise.weight},
        strict=False,
    )
    with torch.no_grad():
        assert error(ours.second.bn(theirs(x)), ours(x)) <= TOLERANCE  # type: ignore[operator]


@pytest.mark.parametrize("first", ["depthwise", "pointwise"])
@pytest.mark.parametrize("between", [False, True])
def test_both_orders_fold_to_their_factors(first: Any, between: bool) -> None:
    """Bare factors become the dense convolution only where its growth is allowed."""
    torch.manual_seed(0)
    model, x = SeparableConv(6, 10, first=first, between=between).double().eval(), noise(1, 6, 8, 8)
    enliven(model, (x,))
    folded, found = folded_error(model, x)
    assert found <= TOLERANCE
    assert layers(folded) == 2
    assert not any(map(is_norm, folded.modules()))
    dense = refold.reparameterize(model, x, allow_growth=True)
    assert layers(dense) == (2 if between else 1)
    with torch.no_grad():
        assert error(model(x), dense(x)) <= TOLERANCE


def test_the_pointwise_first_order_is_an_inception_module_taken_to_the_extreme() -> None:
    """Xception's figure 4: one 1x1, and a 3x3 of its own on each of its channels."""
    torch.manual_seed(0)
    model, x = SeparableConv(4, 5, first="pointwise").double(), noise(1, 4, 7, 7)
    towers: list[nn.Module] = []
    for channel in range(5):
        point, wide = nn.Conv2d(4, 1, 1, bias=False), nn.Conv2d(1, 1, 3, padding=1, bias=False)
        point.weight.data = model.first.weight[channel : channel + 1]
        wide.weight.data = model.second.conv.weight[channel : channel + 1]  # type: ignore[index]
        towers.append(nn.Sequential(point, wide))
    with torch.no_grad():
        wanted = model.second.conv(model.first(x))  # type: ignore[operator]
        assert error(wanted, Towers(*towers)(x)) <= TOLERANCE


def test_the_separable_ratio_is_the_articles() -> None:
    """1 / O + 1 / K2 of the dense convolution's multiply-adds."""
    x = torch.empty(1, 8, 10, 10)
    for out in (4, 16):
        dense = workload_of(nn.Conv2d(8, out, 3, padding=1, bias=False), x).macs or 0
        ratio = Fraction(1, out) + Fraction(1, 9)
        assert workload_of(SeparableConv(8, out).eval(), x).macs == dense * ratio


# -- ShuffleNet -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("groups", "channels"), [(2, 6), (3, 12), (4, 8), (8, 48)])
def test_the_shuffle_is_the_articles_transposition(groups: int, channels: int) -> None:
    """Output channel j g + i is input channel i n + j: the (g, n) table read by columns."""
    x, count = torch.arange(channels).reshape(1, channels, 1, 1), channels // groups
    wanted = [i * count + j for j in range(count) for i in range(groups)]
    shuffle, inverse = ChannelShuffle(groups), ChannelShuffle(groups, inverse=True)
    assert shuffle(x).flatten().tolist() == wanted
    assert torch.equal(inverse(shuffle(x)), x)
    assert torch.equal(inverse(x), ChannelShuffle(count)(x))
    assert torch.equal(shuffle(x), nn.ChannelShuffle(groups)(x.float()).long())


@pytest.mark.parametrize("inverse", [False, True])
def test_a_units_groups_meet_through_the_shuffle_alone(inverse: bool) -> None:
    torch.manual_seed(0)
    unit: Any = ShuffleUnit(24, 24, 1, 2, inverse=inverse).double().eval()
    for shuffled in (True, False):
        part = copy.deepcopy(unit)
        part.shuffle = part.shuffle if shuffled else nn.Identity()
        x = noise(1, 24, 5, 5).requires_grad_()
        y = part.expand(part.depthwise(part.shuffle(part.reduce(x))))
        (found,) = torch.autograd.grad(y[:, :12].square().sum(), x)
        assert bool(found[:, 12:].any()) == shuffled


def test_the_inverse_order_is_another_function() -> None:
    """Weights of the authors' published code want its own order."""
    model, x = alive("shufflenetv1_g3")
    options = {"depths": (2, 2, 1), "width": 0.5, "num_classes": 10}
    other: Any = refold.create_model("shufflenetv1_g3", inverse_shuffle=True, **options)
    other.double().eval().load_state_dict(model.state_dict())
    with torch.no_grad():
        assert error(model(x), other(x)) > 1e-3
        for part in other.modules():
            if isinstance(part, ChannelShuffle | ShuffleUnit):
                part.inverse = False
        assert torch.equal(model(x), other(x))


def test_the_published_code_shuffles_behind_the_depthwise_convolution() -> None:
    """Its unit in torch's functions: 1x1, norm, ReLU, 3x3, norm; view (n, g); 1x1, norm."""
    unit: Any = ShuffleUnit(24, 24, 1, 3, inverse=True).double().eval()
    x = noise(1, 24, 5, 4)
    enliven(unit, (x,))
    with torch.no_grad():
        y = unit.reduce.bn(F.conv2d(x, unit.reduce.conv.weight, groups=3)).relu()
        y = unit.depthwise.bn(F.conv2d(y, unit.depthwise.conv.weight, padding=1, groups=6))
        y = y.reshape(1, 2, 3, 5, 4).permute(0, 2, 1, 3, 4).reshape(1, 6, 5, 4)
        y = unit.expand.bn(F.conv2d(y, unit.expand.conv.weight, groups=3))
        assert error((x + y).relu(), unit(x)) <= TOLERANCE
        folded = refold.reparameterize(unit, x)
        assert error(unit(x), folded(x)) <= TOLERANCE


@pytest.mark.parametrize(
    "options", [{"groups": 5}, {"groups": 8, "width": 0.3}, {"groups": 1, "width": 0.01}]
)
def test_uneven_groups_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="groups"):
        refold.create_model("shufflenetv1_g3", **options)


# -- MobileFaceNet --------------------------------------------------------------------------------


def test_equal_weights_are_the_global_average() -> None:
    x = noise(2, 6, 7, 5)
    layer = GlobalDepthwise(6, (7, 5), deploy=True).double()
    for name, parameter in layer.named_parameters():
        nn.init.constant_(parameter, 1 / 35 if name.endswith("weight") else 0)
    with torch.no_grad():
        assert error(x.mean((2, 3), keepdim=True), layer(x)) <= 1e-12


@pytest.mark.slow
def test_an_average_beside_the_global_depthwise_folds_into_it() -> None:
    model, x = alive("mobilefacenet_gdc_gap", num_classes=10)
    folded, found = folded_error(model, x)
    assert found <= TOLERANCE
    assert not any(isinstance(part, nn.AvgPool2d) for part in folded.modules())
    assert not any(map(is_norm, folded.modules()))
    with torch.device("meta"):
        plain = refold.create_model(
            "mobilefacenet", num_classes=10, deploy=True, image_size=(32, 32), width=0.25
        )
    # The linear embedding then folds into the classifier: 128 x 128 + 128 fewer parameters.
    embedding = 128 * 128 + 128
    assert workload_of(folded).parameters == workload_of(plain).parameters - embedding


def test_images_need_not_be_square() -> None:
    options = {"image_size": (112, 96), "num_classes": 0}
    with torch.device("meta"):
        model: Any = refold.create_model("mobilefacenet", **options).eval()
        assert tuple(model.pool.conv.kernel_size) == (7, 6)
        assert model(torch.empty(1, 3, 112, 96)).shape == (1, 128)
    with pytest.raises(InputError, match="gdc, gap"):
        refold.create_model("mobilefacenet", pool="max")
