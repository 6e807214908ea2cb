"""Operators as modules: the same map in the model's precision, or a refusal."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from refold.algebra.apply import apply
from refold.algebra.geometry import Axis
from refold.algebra.operator import Affine, AvgPool, Conv, Identity, Operator, Pad, Select, Zero
from refold.errors import NotAffineError, RefusedError
from refold.graph.fold.lower import Like, like_of, lower
from refold.graph.layers import Crop, Cropped, ScaleShift, SelectChannels

WIDE = Like(torch.float64, torch.device("cpu"))


def random(*shape: int) -> torch.Tensor:
    noise = torch.Generator().manual_seed(3)
    return torch.randn(shape, generator=noise, dtype=torch.float64)


def conv(*axes: Axis, mode: str = "zeros", groups: int = 1, transposed: bool = False) -> Conv:
    first, second = (4, 6 // groups) if transposed else (6, 4 // groups)
    weight = random(first, second, *(axis.kernel for axis in axes))
    return Conv(weight, random(6), axes, groups, mode, transposed)


OPERATORS: dict[str, tuple[Operator, type]] = {
    "conv": (conv(Axis(3, 2, 1, 1, 1), Axis(2)), nn.Conv2d),
    "grouped": (conv(Axis(3, lo=1, hi=1), Axis(3, 1, 2, 2, 2), groups=2), nn.Conv2d),
    "reflect": (conv(Axis(3, lo=1, hi=1), Axis(3, lo=1, hi=1), mode="reflect"), nn.Conv2d),
    "uneven": (conv(Axis(3, lo=0, hi=2), Axis(3, lo=-1, hi=1)), Cropped),
    "uneven ring": (conv(Axis(3, lo=0, hi=2), Axis(3, lo=1, hi=0), mode="circular"), Cropped),
    "scatter": (conv(Axis(3, 2, 1, 1, 0), Axis(2, 2), transposed=True), nn.ConvTranspose2d),
    "cut scatter": (conv(Axis(3, 2, 1, 0, 2), Axis(2, 2), transposed=True), Cropped),
    "scale": (Affine(random(4), None), ScaleShift),
    "shift": (Affine(None, random(4)), ScaleShift),
    "number": (Affine(random(), random(4)), ScaleShift),
    "pool": (AvgPool((Axis(3, 2, 1, 1, 1), Axis(2, 2)), 5), nn.AvgPool2d),
    "uneven pool": (AvgPool((Axis(3, 2, 1, 0, 2), Axis(2, 2))), Cropped),
    "pad": (Pad(((1, 0), (-1, 2)), value=1.5), Crop),
    "ring": (Pad(((1, 2), (0, 1)), "replicate"), Crop),
    "select": (Select((3, 0, 0), 4), SelectChannels),
    "nothing": (Identity(), nn.Identity),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_module_computes_the_operator(name: str) -> None:
    op, kind = OPERATORS[name]
    module = lower(op, WIDE)
    assert isinstance(module, kind)
    x = random(2, 4, 9, 8)
    assert torch.allclose(module(x), apply(op, x, 2), atol=1e-12)


def test_linear() -> None:
    op = Conv(random(6, 4), random(6))
    module = lower(op, WIDE)
    assert isinstance(module, nn.Linear)
    assert torch.allclose(module(random(2, 4)), apply(op, random(2, 4), 0))


def test_what_has_no_layer() -> None:
    with pytest.raises(NotAffineError, match="Zero"):
        lower(Zero(), WIDE)
    with pytest.raises(RefusedError, match="grouped linear"):
        lower(Conv(random(6, 2), None, groups=2), WIDE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounded_once_to_the_precision_asked_for(dtype: torch.dtype) -> None:
    op = conv(Axis(3), Axis(3))
    module = lower(op, Like(dtype, torch.device("cpu")))
    assert torch.equal(module.weight, op.weight.to(dtype))
    assert torch.equal(module.bias, op.bias.to(dtype))


@pytest.mark.parametrize(
    ("value", "text"), [(7e4, "reaches 7e\\+04, beyond"), (float("nan"), "is not finite")]
)
def test_values_that_do_not_fit(value: float, text: str) -> None:
    op = conv(Axis(1), Axis(1))
    op.weight[0] = value
    with pytest.raises(RefusedError, match=text):
        lower(op, Like(torch.float16, torch.device("cpu")))


def test_tensors_are_the_modules_own() -> None:
    op = conv(Axis(1), Axis(1))
    module = lower(op, like_of([op.weight], 2))
    module.weight.data.zero_()
    assert op.weight.abs().max() > 0


def test_what_is_taken_over() -> None:
    weight = nn.Parameter(torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last))
    like = like_of([torch.zeros(2, dtype=torch.float64), weight, torch.tensor([1])], 2)
    assert like.dtype is torch.float32
    assert like.memory_format is torch.channels_last
    assert like.requires_grad
    assert not like_of([weight.detach()], 2).requires_grad
    volume = torch.randn(4, 3, 3, 3, 3).to(memory_format=torch.channels_last_3d)
    assert like_of([volume], 3).memory_format is torch.channels_last_3d
    layer = lower(conv(Axis(3), Axis(3)), like)
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)


def test_meta_tensors_are_neither_read_nor_checked() -> None:
    op = Conv(torch.empty(4, 3, 1, device="meta"), None, (Axis(),))
    assert lower(op, Like(torch.float16, torch.device("meta"))).weight.dtype is torch.float16
