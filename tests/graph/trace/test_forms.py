"""What a call gives, told without running it, is what running it gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refold.graph.trace.capture import capture
from refold.graph.trace.frames import leaves
from refold.graph.trace.recorder.forms import result_of_call, result_of_layer

LAYERS = [
    (nn.Conv1d(4, 6, 3, stride=2), (2, 4, 9)),
    (nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1)), (1, 4, 7, 9)),
    (nn.Conv2d(4, 8, 1, groups=4, bias=False), (3, 4, 5, 5)),
    (nn.Conv3d(2, 4, 2), (1, 2, 4, 5, 6)),
    (nn.Linear(4, 6), (4,)),
    (nn.Linear(4, 6), (2, 3, 4)),
    (nn.BatchNorm2d(4).eval(), (2, 4, 5, 5)),
    (nn.GELU(), (2, 4)),
    (nn.ReLU6(inplace=True), (2, 4)),
    (nn.Softshrink(), (2, 4)),
    (nn.LayerNorm(4), (2, 3, 4)),
    (nn.LayerNorm((3, 4)), (2, 3, 4)),
    (nn.GroupNorm(2, 4), (2, 4, 3)),
    (nn.AdaptiveAvgPool2d(1), (2, 4, 5, 6)),
    (nn.AdaptiveAvgPool2d((None, 3)), (2, 4, 5, 6)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda value: str(value)[:60])
def test_a_layer_gives_what_it_is_said_to_give(layer: nn.Module, shape: tuple[int, ...]) -> None:
    told = result_of_layer(layer, (torch.empty(shape, device="meta"),), torch.float32)
    ran = layer(torch.zeros(shape))
    assert told is not None
    assert told.is_meta
    assert (told.shape, told.stride(), told.dtype) == (ran.shape, ran.stride(), ran.dtype)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, 3), (1, 3, 5, 5)),  # these fail, and must do so in a recording
        (nn.Conv2d(4, 6, 3), (1, 4, 2, 2)),
        (nn.Conv2d(4, 6, 3), (4,)),
        (nn.Linear(4, 6), (2, 3)),
        (nn.Conv2d(4, 6, 3), (4, 5, 5)),  # these are unusual
        (nn.Conv2d(4, 6, 3, padding="same"), (1, 4, 5, 5)),
        (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (1, 4, 5, 5)),
        (nn.BatchNorm2d(4).train(), (1, 4, 5, 5)),
        (nn.AvgPool2d(2), (1, 4, 6, 6)),
        (nn.LayerNorm(4), (2, 3, 5)),
        (nn.GroupNorm(2, 4), (2, 6, 3)),
    ],
    ids=str,
)
def test_what_fails_or_is_unusual_is_run(layer: nn.Module, shape: tuple[int, ...]) -> None:
    assert result_of_layer(layer, (torch.empty(shape, device="meta"),), torch.float32) is None


def test_other_layouts_and_types_are_run() -> None:
    x = torch.empty(1, 4, 5, 5, device="meta")
    layer = nn.Conv2d(4, 6, 3)
    assert result_of_layer(layer, (x.to(memory_format=torch.channels_last),), x.dtype) is None
    assert result_of_layer(layer, (x.double(),), torch.float32) is None


NORM: dict[str, Any] = {"weight": torch.ones(4), "bias": torch.ones(4)}


@pytest.mark.parametrize(
    ("channels", "options", "is_told"),
    [
        (4, NORM, True),
        (3, NORM, False),  # an error
        (4, {**NORM, "training": True}, False),
    ],
)
def test_a_norm_called_as_a_function(channels: int, options: dict[str, Any], is_told: bool) -> None:
    x, mean, var = torch.empty(2, channels, 3, 3), torch.zeros(4), torch.ones(4)
    told = result_of_call(F.batch_norm, (x, mean, var), options, [x, mean, var, *options.values()])
    assert (told is not None) == is_told


@pytest.mark.parametrize(
    ("call", "is_told"),
    [
        (lambda x: (F.layer_norm, (x, (5,)), {}), True),
        (
            lambda x: (
                F.layer_norm,
                (x,),
                {"normalized_shape": [3, 5], "weight": torch.ones(3, 5)},
            ),
            True,
        ),
        (lambda x: (F.layer_norm, (x, (4,)), {}), False),  # an error
        (lambda x: (F.layer_norm, (x, (5,), torch.ones(5).double()), {}), False),
        (lambda x: (F.layer_norm, (x.transpose(0, 1), (5,)), {}), True),
        (lambda x: (torch.clamp, (x, 0, 6), {}), True),
        (lambda x: (torch.clamp, (x, torch.zeros(2, 3, 5), None), {}), False),
        (lambda x: (F.hardtanh, (x, 0.0, 6.0), {"inplace": True}), True),
        (lambda x: (torch.relu_, (x,), {}), True),
        (lambda x: (F.dropout, (x, 0.5, True), {}), False),
    ],
)
def test_a_call_gives_what_it_is_said_to_give(call: Any, is_told: bool) -> None:
    blank, x = torch.empty(2, 3, 5, device="meta"), torch.randn(2, 3, 5)
    func, args, options = call(blank)
    told = result_of_call(func, args, options, [*args, *options.values()])
    assert (told is not None) == is_told
    if told is not None:
        func, args, options = call(x)
        ran = func(*args, **options)
        assert (told.shape, told.stride(), told.dtype) == (ran.shape, ran.stride(), ran.dtype)
        assert (told is blank) == (ran is x)


OTHERS = [
    (lambda x, y: (torch.cat, ([x, y], 1), {}), True),
    (lambda x, y: (torch.cat, ((x, y),), {"dim": -1}), False),  # an error
    (lambda x, y: (torch.cat, ([x, x.transpose(2, 3)], -2), {}), False),
    (lambda x, y: (Tensor.mean, (x, (2, 3)), {"keepdim": True}), True),
    (lambda x, y: (torch.mean, (x, -1), {}), True),
    (lambda x, y: (torch.mean, (x,), {}), False),
    (lambda x, y: (torch.mean, (x, 1), {"dtype": torch.float64}), False),
    (lambda x, y: (F.interpolate, (x,), {"scale_factor": 1.6, "mode": "bilinear"}), True),
    (lambda x, y: (F.interpolate, (x, (3, 9)), {}), True),
    (lambda x, y: (F.interpolate, (x, None, (2, 3)), {}), True),
    (lambda x, y: (F.adaptive_avg_pool2d, (x, (None, 2)), {}), True),
    (lambda x, y: (F.max_pool2d, (x, 3, 2, 1), {}), True),
    (lambda x, y: (F.max_pool2d, (x, (2, 3)), {"dilation": 2, "ceil_mode": True}), True),
    (lambda x, y: (F.max_pool2d, (x, 2, 4, 1), {"ceil_mode": True}), True),
    (lambda x, y: (F.max_pool2d, (x, 2), {"padding": 2}), False),  # an error
    (lambda x, y: (F.max_pool2d, (x, 7), {}), False),  # an error
    (lambda x, y: (F.max_pool2d, (x, 2), {"return_indices": True}), False),
    (lambda x, y: (F.avg_pool2d, (x, [2, 2], 3), {"ceil_mode": True, "padding": 1}), True),
    (lambda x, y: (F.avg_pool2d, (x, 2, None, 0, False, False, 3), {}), True),
    (lambda x, y: (F.avg_pool2d, (x.transpose(2, 3), 2), {}), False),
    (lambda x, y: (F.group_norm, (x, 2, torch.ones(4)), {}), True),
    (lambda x, y: (F.group_norm, (x, 3), {}), False),  # an error
    (lambda x, y: (F.group_norm, (x.transpose(2, 3), 2), {}), False),
    (lambda x, y: (Tensor.add, (x[:, :, :1, :1].contiguous(), x), {}), True),
    (lambda x, y: (Tensor.add, (x[:, :, :1], x[..., :1]), {}), False),
    (lambda x, y: (Tensor.mul, (x, 0.5), {}), True),
    (lambda x, y: (Tensor.mul, (x, 2j), {}), False),
    (lambda x, y: (Tensor.add_, (x, x.clone()), {}), True),
    (lambda x, y: (Tensor.add_, (x[:, :1], x), {}), False),  # an error
    (lambda x, y: (torch.roll, (x, (1, -2), (2, -1)), {}), True),
    (lambda x, y: (torch.roll, (x, 1), {"dims": 0}), True),
    (lambda x, y: (torch.roll, (x, 1), {}), False),
    (lambda x, y: (torch.roll, (x, (1, 2), (2,)), {}), False),  # an error
    (lambda x, y: (F.softmax, (x,), {"dim": -1, "dtype": None}), True),
    (lambda x, y: (Tensor.softmax, (x, 1, torch.float64), {}), False),
    (lambda x, y: (torch.softmax, (x, 4), {}), False),  # an error
    (lambda x, y: (F.scaled_dot_product_attention, (x, x, x), {"is_causal": True}), True),
    (lambda x, y: (F.scaled_dot_product_attention, (x, x, x[..., :2]), {}), True),
    (lambda x, y: (F.scaled_dot_product_attention, (x[:, :, :2], x, x), {}), True),
    (lambda x, y: (F.scaled_dot_product_attention, (x, y, y), {}), False),  # an error
    (lambda x, y: (F.scaled_dot_product_attention, (x, x[..., :3], x), {}), False),  # an error
    (lambda x, y: (F.scaled_dot_product_attention, (x, x.double(), x), {}), False),  # an error
    (lambda x, y: (F.scaled_dot_product_attention, (x, x, x, x @ x.mT), {}), False),
]


@pytest.mark.parametrize(("call", "is_told"), OTHERS)
def test_a_call_of_maps_gives_what_it_is_said_to_give(call: Any, is_told: bool) -> None:
    def given(device: str) -> Any:
        x, y = torch.zeros(2, 4, 5, 6, device=device), torch.zeros(2, 3, 5, 6, device=device)
        return x, call(x, y)

    blank, (func, args, options) = given("meta")
    told = result_of_call(func, args, options, leaves((args, options)))
    assert (told is not None) == is_told
    if told is not None:
        x, (func, args, options) = given("cpu")
        ran = func(*args, **options)
        assert (told.shape, told.stride(), told.dtype) == (ran.shape, ran.stride(), ran.dtype)
        assert (told is blank) == (ran is x)


def test_a_norm_without_statistics_is_run() -> None:
    x = torch.empty(2, 4, 3, 3)
    assert result_of_call(F.batch_norm, (x, None, None), {}, [x, None, None]) is None


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)], ids=str)
def test_hooks_of_a_layer_run_in_a_recording(layer: nn.Module) -> None:
    """What a hook gives takes the place of what the layer does."""

    def halve(module: nn.Module, given: Any, result: Tensor) -> Tensor:
        return result[:, :2]

    layer.register_forward_hook(halve)
    [found] = capture(nn.Sequential(layer, nn.Conv2d(2, 3, 1)).eval(), (torch.zeros(1, 4, 5, 5),))
    assert sorted(found.shapes.values())[-1] == (1, 4, 5, 5)
    assert (1, 2, 5, 5) in found.shapes.values()
