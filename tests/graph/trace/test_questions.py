"""Operators as code can run them again, and decisions that a run answers the other way round."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import refold
from helpers.traps import conv, gap, images, live, net, norms


def branches(act: Callable[[Any], Any]) -> nn.Module:
    """Return two branches that merge, and a function of the sum."""
    layers = {"c": conv(), "a": nn.BatchNorm2d(4), "d": conv(kernel=1), "b": nn.BatchNorm2d(4)}

    def forward(self: Any, x: Tensor) -> Any:
        return act(self.a(self.c(x)) + self.b(self.d(x)))

    return live(net(forward, **layers))


OPERATORS: dict[str, Callable[[Any], Any]] = {
    "power": lambda y: y**2,
    "power of a value": lambda y: y.abs() ** y,
    "power in place": lambda y: y.clone().__ipow__(2),
    "value as a power": lambda y: 2.0**y,
    "one divided": lambda y: 1 / (y.abs() + 1),
    "whole division": lambda y: 3 // (y.abs() + 1),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_a_generated_forward_runs_what_code_writes(name: str) -> None:
    model = branches(OPERATORS[name])
    folded = refold.reparameterize(model, images())
    assert gap(model, folded, images()) <= 1e-9
    assert norms(folded) == 0


class Wide(nn.Module):
    """A block that does more to a wide image."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(inputs, 4, 3, 2, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if x.shape[-1] > 100:
            y = y.abs()
        return self.norm(y)


@pytest.mark.parametrize("example", [images(1, 3, 20, 20), None])
def test_a_line_that_decides_for_several_blocks_is_asked_for_all(example: Any) -> None:
    model = live(nn.Sequential(Wide(3), Wide(4), Wide(4)))
    folded = refold.plan(model, example).apply()
    for side in (20, 120, 450):
        x = images(1, 3, 8, side)
        assert gap(model, folded, x) <= 1e-9


class Same(nn.Module):
    """Pads as TensorFlow does, by a helper that asks whether the stride divides the side."""

    def __init__(self, inputs: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, 4, 3, stride, bias=False)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        side, stride = x.shape[-1], self.conv.stride[0]
        more = max(3 - stride, 0) if side % stride == 0 else max(3 - side % stride, 0)
        return self.norm(self.conv(F.pad(x, (more // 2, more - more // 2) * 2)))


def test_what_no_size_can_answer_otherwise_stops_no_fold() -> None:
    model = live(nn.Sequential(Same(3, 2), nn.ReLU(), Same(4, 1), nn.ReLU(), Same(4, 1)))
    folded = refold.plan(model, images(1, 3, 8, 8)).apply()
    assert norms(folded) == 0
    for side in (8, 9):
        assert gap(model, folded, images(1, 3, side, side)) <= 1e-9


def test_a_model_that_only_a_plain_run_can_run_is_no_false_error() -> None:
    """It differentiates itself: it cannot be recorded, nor counted, but it runs."""

    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.block(x).sum(), x)[0]

    model = live(net(forward, block=nn.Sequential(conv(), nn.BatchNorm2d(4))))
    plan = refold.plan(model, images())
    assert plan.cost_before.macs is None
    assert gap(model, plan.apply(), images()) <= 1e-9


@pytest.mark.parametrize("given", [True, False])
def test_a_generator_of_the_model_stays_where_it_was(given: bool) -> None:
    """A fold draws nothing from it, and draws what the model draws: each from its own."""
    noise = torch.Generator().manual_seed(0)

    def forward(self: Any, x: Tensor) -> Any:
        drawn = torch.rand(4, 1, 1, generator=self.noise, dtype=x.dtype)
        return self.norm(self.conv(x)) * drawn

    model: Any = live(net(forward, conv=conv(), norm=nn.BatchNorm2d(4)))
    model.noise = noise
    before = noise.get_state()
    folded = refold.reparameterize(model, images() if given else None)
    assert torch.equal(noise.get_state(), before)
    assert norms(folded) == 0
    assert [gap(model, folded, images()) <= 1e-9 for _ in range(3)] == [True] * 3
    assert folded.noise is not noise


LATE = """
import os

TWICE = os.environ.get("LATE_TWICE") == "1"


def asked():
    return os.environ.get("LATE_TWICE") == "1"
"""


@pytest.mark.parametrize("asks_again", [False, True])
def test_a_file_asks_for_itself_while_it_is_imported(
    asks_again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch loads such files within the first call of an operator without storage."""
    name = f"imported_late_{asks_again}"
    (tmp_path / f"{name}.py").write_text(LATE)
    monkeypatch.syspath_prepend(tmp_path)

    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.c(x)
        late = importlib.import_module(name)
        return self.a(self.a(y) if asks_again and late.asked() else y)

    model = live(net(forward, c=conv(), a=nn.BatchNorm2d(4)))
    assert norms(refold.reparameterize(model, images())) == asks_again


def test_a_question_that_a_cache_answers_later_is_asked_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first run asks in the cached function, any other where the code asks the same again."""

    @functools.cache
    def cached() -> bool:
        return os.environ.get("NORM_TWICE") == "1"

    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.c(x)
        cached()
        return self.a(self.a(y) if os.environ.get("NORM_TWICE") == "1" else y)

    model = live(net(forward, c=conv(), a=nn.BatchNorm2d(4)))
    folded = refold.reparameterize(model, images())
    monkeypatch.setenv("NORM_TWICE", "1")
    assert gap(model, folded, images()) == 0
