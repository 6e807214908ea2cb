"""What the trap tests share: live statistics, the bits of a model, and the one assertion."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from helpers.naive import naive
from refold import Plan, plan

EXACT, WRONG = 1e-9, 1e-3


def live(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return the model in eval mode and float64, with norm statistics as training leaves them."""
    noise = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor, low: float, high: float) -> None:
        values = torch.rand(tensor.shape, generator=noise, dtype=torch.float64)
        tensor.copy_(values * (high - low) + low)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(getattr(module, "running_var", None), Tensor):
                draw(module.running_mean, -0.5, 0.5)
                draw(module.running_var, 0.5, 2.0)
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.weight is not None:
                draw(module.weight, -1.5, 1.5)
                if module.bias is not None:
                    draw(module.bias, -0.5, 0.5)
    return model.double().eval()


def images(*shape: int, seed: int = 1) -> Tensor:
    """Return random inputs; (2, 3, 11, 9) by default."""
    noise = torch.Generator().manual_seed(seed)
    return torch.randn(shape or (2, 3, 11, 9), generator=noise, dtype=torch.float64)


def tensors(value: Any) -> list[Tensor]:
    """Return the tensors in any nest."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [tensor for item in value for tensor in tensors(item)]


@torch.no_grad()
def gap(model: nn.Module, other: nn.Module, *inputs: Any) -> float:
    """Return the largest relative difference of two models, infinite when one cannot run."""
    given = [copy.deepcopy(inputs) for _ in range(2)]
    wanted = [t.detach().clone() for t in tensors(model(*given[0]))]
    got = tensors(other(*given[1]))
    if [t.shape for t in wanted] != [t.shape for t in got]:
        return math.inf
    pairs = zip(wanted, got, strict=True)
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)) for a, b in pairs)


def control(model: nn.Module, *inputs: Any, folder: Callable[[nn.Module], nn.Module]) -> float:
    """Return how wrong a naive folder is; a crash is infinitely wrong."""
    try:
        return gap(model, folder(model), *inputs)
    except Exception:
        return math.inf


def bits(model: nn.Module) -> list[Any]:
    """Return everything a fold might change in the caller's model, to compare before and after."""
    found: list[Any] = []
    for name, module in model.named_modules(remove_duplicate=False):
        found.append((name, id(module), type(module), module.training, sorted(module.__dict__)))
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        found.append((name, id(tensor), tensor._version, tensor.detach().clone()))
    return found


def same_bits(one: list[Any], two: list[Any]) -> bool:
    """Say whether nothing changed."""
    if [row[:-1] for row in one] != [row[:-1] for row in two]:
        return False
    pairs = ((a[-1], b[-1]) for a, b in zip(one, two, strict=True))
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


def trap(
    model: nn.Module,
    *inputs: Any,
    reason: str | None = None,
    folder: Callable[[nn.Module], nn.Module] = naive,
) -> Plan:
    """Assert that refold is exact and gives this reason, and that the naive folder is wrong."""
    model, inputs = live(model), inputs or (images(),)
    assert control(model, *inputs, folder=folder) > WRONG
    return sound(model, *inputs, reason=reason)


def sound(
    model: nn.Module, *inputs: Any, reason: str | None = None, allow_growth: bool = False
) -> Plan:
    """Assert that refold is exact, leaves the model alone and gives this reason."""
    model, inputs = live(model), inputs or (images(),)
    before = bits(model)
    done = plan(model, inputs, allow_growth=allow_growth)
    assert gap(model, done.apply(), *inputs) <= EXACT
    assert same_bits(before, bits(model))
    if reason is not None:
        assert any(reason in kept.reason for kept in done.refusals), done.refusals
    return done


def net(forward: Callable[..., Any], **children: Any) -> nn.Module:
    """Return an instance of a new class with this forward and these children or parameters."""
    made = type("Net", (nn.Module,), {"forward": forward})()
    for name, child in children.items():
        setattr(made, name, child)
    return made


def conv(inputs: int = 3, outputs: int = 4, kernel: int = 3, **options: Any) -> nn.Conv2d:
    """Return a convolution that keeps the size unless asked otherwise."""
    return nn.Conv2d(inputs, outputs, kernel, **{"padding": kernel // 2, **options})


def norms(model: nn.Module) -> int:
    """Return how many batch norms are left."""
    return sum(isinstance(m, nn.modules.batchnorm._NormBase) for m in model.modules())
