"""Code that a graph may get wrong: each line stands before, between and after a conv and a norm."""

from __future__ import annotations

import copy
import functools
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import refold
from helpers.nightly import some
from helpers.traps import bits, live, same_bits

Twist = Callable[[Any, Tensor], Tensor]
SIZES = ((2, 4, 9, 7), (1, 4, 4, 4), (3, 4, 12, 12))


def _flag(self: Any, x: Tensor) -> Tensor:
    self.flag = not self.flag
    return x * 2 if self.flag else x


def _count(self: Any, x: Tensor) -> Tensor:
    self.count += 1
    return x * self.count


def _history(self: Any, x: Tensor) -> Tensor:
    self.history.append(1)
    return x + len(self.history)


def _cache(self: Any, x: Tensor) -> Tensor:
    if not self.cache:
        self.cache["scale"] = self.gamma * 2
    return x * self.cache["scale"]


def _buffer_counter(self: Any, x: Tensor) -> Tensor:
    self.steps += 1
    return x * self.steps


def _caught(self: Any, x: Tensor) -> Tensor:
    try:
        return x + self.missing
    except AttributeError:
        return x * 3


def _loop_over_batch(self: Any, x: Tensor) -> Tensor:
    return torch.stack([x[i] * (i + 1) for i in range(x.shape[0])])


def _loop_to_value(self: Any, x: Tensor) -> Tensor:
    while x.abs().max() > 1:
        x = x / 2
    return x


def _assign_data(self: Any, x: Tensor) -> Tensor:
    self.gamma.data = self.gamma.data * 1.0
    return x * self.gamma


@functools.lru_cache(maxsize=8)
def _grid(height: int, width: int) -> Tensor:
    return torch.arange(height * width).reshape(1, 1, height, width).double()


def _pad_same(self: Any, x: Tensor) -> Tensor:
    side = x.shape[-1]
    total = max((math.ceil(side / 2) - 1) * 2 + 3 - side, 0)
    return F.pad(x, (total // 2, total - total // 2) * 2)


def _written_view(self: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :1].mul_(2)
    return y


def _renamed(self: Any, x: Tensor) -> Tensor:
    y = x.clone()
    z = y.relu_()
    return y + z


def _numpy(self: Any, x: Tensor) -> Tensor:
    return x * float(np.float64(0.5))


TWISTS: dict[str, Twist] = {
    # control flow on type, rank, dtype, device
    "is_tensor": lambda s, x: x * 2 if torch.is_tensor(x) else x,
    "type is": lambda s, x: x * 2 if type(x) is Tensor else x,
    "isinstance": lambda s, x: x * 2 if isinstance(x, Tensor) else x,
    "not a list": lambda s, x: x if isinstance(x, (list, tuple)) else x * 2,
    "hasattr": lambda s, x: x * 2 if hasattr(x, "ndim") else x,
    "ndim table": lambda s, x: x * {3: 2, 4: 3}[x.ndim],
    "rank by length": lambda s, x: x * len(x.shape),
    "dtype": lambda s, x: x * 2 if x.dtype == torch.float64 else x,
    "dtype of half": lambda s, x: x.float() if x.dtype == torch.float16 else x,
    "scaled half": lambda s, x: x.float() * 2 if x.dtype == torch.float16 else x,
    "device": lambda s, x: x * 2 if x.device.type == "cpu" else x,
    "is_cuda": lambda s, x: x.cpu() if x.is_cuda else x,
    "to itself": lambda s, x: x.to(x.device, x.dtype),
    "gradients": lambda s, x: x.detach() if not torch.is_grad_enabled() else x,
    "floating": lambda s, x: x * 2 if torch.is_floating_point(x) else x,
    # sizes
    "threshold": lambda s, x: x * 2 if x.shape[-1] > 8 else x,
    "threshold as int": lambda s, x: x * 2 if int(x.shape[-1]) > 8 else x,
    "even": lambda s, x: x * 2 if x.shape[-1] % 2 == 0 else x,
    "square": lambda s, x: x * 2 if x.shape[-1] == x.shape[-2] else x,
    "batch of one": lambda s, x: x * 2 if len(x) == 1 else x,
    "numel": lambda s, x: x * 2 if x.numel() > 200 else x,
    "size as factor": lambda s, x: x * x.shape[-1],
    "baked size": lambda s, x: x * int(x.shape[-1]),
    "range": _loop_over_batch,
    "reshape": lambda s, x: x.reshape(x.shape[0], x.shape[1], -1).reshape(x.shape),
    "unpacked": lambda s, x: (lambda n, c, h, w: x.view(n, c, h * w).view(n, c, h, w))(*x.shape),
    "half a side": lambda s, x: F.interpolate(x, size=(x.shape[-2] // 2, x.shape[-1] // 2)),
    "ceil of a side": lambda s, x: F.interpolate(x, size=[math.ceil(n / 2) for n in x.shape[2:]]),
    "same padding": _pad_same,
    "zeros of its shape": lambda s, x: x + torch.zeros(*x.shape, dtype=x.dtype, device=x.device),
    "ones of a size": lambda s, x: x + torch.ones(x.shape[-1], dtype=x.dtype),
    "cached grid": lambda s, x: x + _grid(x.shape[-2], x.shape[-1]),
    "table of sizes": lambda s, x: x * {9: 2, 4: 3}.get(x.shape[-2], 1),
    # values
    "sum": lambda s, x: x * 2 if x.sum() > 0 else x,
    "item": lambda s, x: x * x.mean().item(),
    "tolist": lambda s, x: x + x.mean((1, 2, 3)).tolist()[0],
    "loop": _loop_to_value,
    "nonzero": lambda s, x: x + x.nonzero().shape[0],
    "mask": lambda s, x: x + x[x > 0].sum(),
    "stored value": lambda s, x: x * 2 if s.gamma.abs().sum() > 0 else x,
    "stored item": lambda s, x: x * s.steps.item() if s.steps.item() > 0 else x + 1,
    # state
    "flag": _flag,
    "counter": _count,
    "history": _history,
    "cache": _cache,
    "buffer counter": _buffer_counter,
    "assigned data": _assign_data,
    # randomness
    "python random": lambda s, x: x * 2 if random.Random(0).random() > 0.5 else x,
    "python random drawn": lambda s, x: x * 2 if random.random() > 0.5 else x,
    "eval dropout": lambda s, x: F.dropout(x, 0.5, s.training),
    # exceptions, in-place work, constants
    "caught": _caught,
    "written view": _written_view,
    "renamed": _renamed,
    "written channel": lambda s, x: torch.cat([x[:, :1] * 2, x[:, 1:]], 1),
    "numpy number": _numpy,
    "constant": lambda s, x: x * torch.tensor(0.5),
    "linspace": lambda s, x: x * torch.linspace(0, 1, 4, dtype=torch.float64)[2].item(),
    "no_grad": lambda s, x: x + torch.no_grad()(torch.abs)(x),
    "chunk": lambda s, x: torch.cat([part * 2 for part in x.chunk(2, 1)], 1),
    "einsum": lambda s, x: torch.einsum("nchw,c->nchw", x, s.gamma.flatten()),
    "getattr default": lambda s, x: x * getattr(s, "absent", 2),
    "parameters": lambda s, x: x * sum(p.numel() for p in s.parameters()),
    "bn statistics": lambda s, x: x + s.norm.running_mean.mean(),
}


class Twisted(nn.Module):
    def __init__(self, twist: Twist, place: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.gamma = nn.Parameter(torch.tensor([1.5, -0.5, 2.0, 1.0]).reshape(1, 4, 1, 1))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.flag, self.count = False, 0
        self.history: list[int] = []
        self.cache: dict[str, Tensor] = {}
        self.twist, self.place = twist, place

    def forward(self, x: Tensor) -> Tensor:
        x = self.twist(self, x) if self.place == 0 else x
        x = self.conv(x)
        x = self.twist(self, x) if self.place == 1 else x
        x = self.norm(x)
        return self.twist(self, x) if self.place == 2 else x


def draw(shape: tuple[int, ...], seed: int) -> Tensor:
    noise = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=noise, dtype=torch.float64)


def judge(model: nn.Module, example: Tensor | None, sizes: tuple[tuple[int, ...], ...]) -> None:
    """Assert that the folded form answers as the model does, call after call."""
    before, reference = bits(model), copy.deepcopy(model)
    folded = refold.reparameterize(model, example)
    assert same_bits(before, bits(model))
    for seed, shape in enumerate(sizes):
        x = draw(shape, seed)
        for call in range(3):
            with torch.no_grad():
                random.seed(seed + call)
                expected = reference(x.clone())
                random.seed(seed + call)
                got = folded(x.clone())
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


# Each between the two, and before or after them.
CASES = [(name, place) for name in TWISTS for place in range(3)]
OFTEN = [(name, place) for number, name in enumerate(TWISTS) for place in (1, number % 2 * 2)]


@pytest.mark.parametrize(("name", "place"), some(CASES, keep=OFTEN))
def test_the_answer_stays(name: str, place: int) -> None:
    for example in (draw(SIZES[0], 9), None):
        judge(live(Twisted(TWISTS[name], place)).double().eval(), example, SIZES)


NO_MATTER = (
    "is_tensor",
    "ndim table",
    "dtype of half",
    "is_cuda",
    "threshold",
    "even",
    "same padding",
    "unpacked",
    "cached grid",
    "stored value",
    "caught",
)


@pytest.mark.parametrize("name", NO_MATTER)
def test_what_stands_before_a_conv_keeps_no_norm(name: str) -> None:
    model = live(Twisted(TWISTS[name], 0)).double().eval()
    folded = refold.reparameterize(model, draw(SIZES[0], 9))
    assert not isinstance(getattr(folded, "norm", None), nn.BatchNorm2d)


@pytest.mark.parametrize("name", ["threshold", "even", "square", "scaled half", "flag", "sum"])
def test_what_may_come_between_keeps_the_norm(name: str) -> None:
    model = live(Twisted(TWISTS[name], 1)).double().eval()
    plan = refold.plan(model, draw(SIZES[0], 9))
    assert isinstance(plan.apply().norm, nn.BatchNorm2d)
    assert plan.refusals


def test_a_wider_copy_that_half_precision_makes_between_keeps_no_norm() -> None:
    model = live(Twisted(TWISTS["dtype of half"], 1)).double().eval()
    folded = refold.plan(model, draw(SIZES[0], 9)).apply()
    assert not isinstance(folded.norm, nn.BatchNorm2d)
    x = draw(SIZES[0], 9).half()
    model.conv.half(), model.norm.float()  # as the copy is wider
    wanted, got = model(x), folded.half()(x)
    assert got.dtype == wanted.dtype == torch.float32
    assert (got - wanted).abs().max() < 1e-2 * wanted.abs().max()  # what half precision rounds


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, features: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        y = self.conv(x)
        y = y if mask is None else y * mask
        z = self.norm(y)
        return (z, y) if features else z


def test_optional_arguments_are_given_and_left_out() -> None:
    model = live(Masked()).double().eval()
    x, mask = draw((2, 4, 5, 5), 0), draw((2, 1, 5, 5), 1)
    for example in (None, x, (x, mask), {"x": x, "features": True}):
        folded = refold.reparameterize(model, example)
        for arguments in ((x,), (x, mask), (x, mask, True)):
            torch.testing.assert_close(folded(*arguments), model(*arguments), rtol=1e-9, atol=1e-9)


FEATURES: list[Tensor] = []


class Collected(nn.Module):
    """Features that hooks carry to the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()) for _ in range(2))
        self.last, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        for stage in self.stages:
            stage.register_forward_hook(lambda module, args, output: FEATURES.append(output))

    def forward(self, x: Tensor) -> Tensor:
        FEATURES.clear()
        for stage in self.stages:
            x = stage(x)
        return self.norm(self.last(x) + FEATURES[0])


def test_what_hooks_carry_is_seen() -> None:
    for example in (draw((2, 4, 5, 5), 1), None):
        judge(live(Collected()).double().eval(), example, ((2, 4, 5, 5), (1, 4, 3, 3)))


def test_a_cache_of_the_process_keeps_no_tensor_of_a_recording() -> None:
    _grid.cache_clear()
    model = live(Twisted(TWISTS["cached grid"], 0)).double().eval()
    refold.reparameterize(model, draw(SIZES[0], 9))
    assert not _grid(SIZES[0][2], SIZES[0][3]).is_meta
