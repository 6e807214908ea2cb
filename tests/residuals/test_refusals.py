"""What cannot ride along is refused with its place and reason, and left exactly as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import refold
from helpers.random_residuals import Net, build, pair
from refold.errors import InputError, RefusedError


def _dropped(net: Any, x: Tensor) -> Tensor:
    return F.dropout(x, 0.5, training=True) + net.f(x)


def _gated(net: Any, x: Tensor) -> Tensor:
    gate = torch.sigmoid(net.g(x))
    return gate * net.f(x) + (1 - gate) * x


def _leaked(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    inner = net.g(x).relu()
    return x + net.h(inner), inner


def _changed(net: Any, x: Tensor) -> Tensor:
    x = net.g(x)
    y = net.f(x)
    x.mul_(2)
    return x + y


def _sliced(net: Any, x: Tensor) -> Tensor:
    return x + net.f(x) if float(x.sum()) > 0 else x


REFUSALS: list[tuple[Callable[[Any, Tensor], Any], nn.Module, str]] = [
    (lambda net, x: x + net.f(x), nn.SiLU(), "silu changes every value"),
    (lambda net, x: x + net.f(x), nn.GELU(), "gelu changes every value"),
    (lambda net, x: x + net.f(x), nn.Hardswish(), "hardswish changes every value"),
    (lambda net, x: x + net.f(x), nn.ELU(), "elu changes negative values"),
    (_dropped, nn.ReLU(), "dropout is in training mode"),
    (_gated, nn.ReLU(), "gate"),
    (_leaked, nn.ReLU(), "is also read by"),
    (_changed, nn.ReLU(), "in place"),
    (lambda net, x: net.f(x) + net.f(x.neg()), nn.ReLU(), "called 2 times"),
    (_sliced, nn.ReLU(), "could not be followed"),
    (lambda net, x: x.mean((2, 3), keepdim=True) + net.f(x), nn.ReLU(), "different shapes"),
    (lambda net, x: torch.sin(x) + net.f(x), nn.ReLU(), "do not start from one value"),
    (lambda net, x: net.g(x).relu() + net.f(x), nn.ReLU(), "both its sides are nonlinear"),
    (lambda net, x: F.max_pool2d(x, 3, 1, 1) + net.f(x), nn.ReLU(), "do not start from one value"),
]  # fmt: skip


@pytest.mark.parametrize(("forward", "act", "reason"), REFUSALS, ids=[r for *_, r in REFUSALS])
def test_what_cannot_ride_along_is_refused(
    forward: Callable[[Any, Tensor], Any], act: nn.Module, reason: str
) -> None:
    model = (
        nn.Sequential(Net(forward, f=pair(act), g=nn.Conv2d(4, 4, 1), h=nn.Conv2d(4, 4, 3, 1, 1)))
        .double()
        .eval()
    )
    example = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    with pytest.raises(RefusedError, match=rf"  0: .*{reason}"):
        refold.remove_residuals(model, example, strict=True)
    kept = refold.remove_residuals(model, example)
    with torch.no_grad():
        torch.manual_seed(0)
        expected = model(example.clone())
        torch.manual_seed(0)
        found = kept(example.clone())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_training_mode_and_missing_inputs_are_refused() -> None:
    with pytest.raises(RefusedError, match=r"eval\(\)"):
        refold.remove_residuals(build(0).train(), torch.randn(1, 3, 8, 8).double())
    with pytest.raises(InputError, match="example_inputs"):
        refold.remove_residuals(build(0), None)
