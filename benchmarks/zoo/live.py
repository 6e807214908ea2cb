"""Random numbers in every parameter that starts constant: a fresh network hides most mistakes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def enliven(model: nn.Module, example: tuple[Any, ...], seed: int = 0) -> nn.Module:
    """Give the network live norm statistics, norm weights of both signs and biases, in place.

    Each norm gets the statistics of what it sees, pushed away from them at random, so that values
    keep an ordinary size however deep the network is.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in model.modules() if is_norm(module)]
    with torch.no_grad():
        for module in model.modules():
            for name, tensor in module.named_parameters(recurse=False):
                _randomise(module, name, tensor, generator)
        for norm in norms:
            _randomise_norm(norm, generator)
        hooks = [norm.register_forward_pre_hook(_Observer(generator)) for norm in norms]
        try:
            model(*example)
        finally:
            for hook in hooks:
                hook.remove()
    return model


def is_norm(module: nn.Module) -> bool:
    """Say whether a module normalises with fixed statistics: batch norm, frozen or not."""
    return isinstance(getattr(module, "running_var", None), Tensor)


def _uniform(like: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator).to(like) * (high - low) + low


def _randomise(module: nn.Module, name: str, tensor: Tensor, generator: torch.Generator) -> None:
    """Replace a constant start (a zero bias, a tiny LayerScale) by random numbers."""
    if is_norm(module) or tensor.numel() < 2 or bool((tensor != tensor.flatten()[0]).any()):
        return
    ones = bool((tensor == 1).all())
    low, high = (0.7, 1.3) if ones else (-0.3, 0.3)
    tensor.copy_(_uniform(tensor, low, high, generator))


def _randomise_norm(norm: nn.Module, generator: torch.Generator) -> None:
    held = {**dict(norm.named_parameters(recurse=False)), **dict(norm.named_buffers(recurse=False))}
    weight, bias = held.get("weight"), held.get("bias")
    if weight is not None:
        negative = torch.rand(weight.shape, generator=generator).to(weight) < 0.25
        weight.copy_(_uniform(weight, 0.5, 1.5, generator) * (1 - 2 * negative.to(weight)))
    if bias is not None:
        bias.copy_(_uniform(bias, -0.4, 0.4, generator))


class _Observer:
    """A hook that sets a norm's statistics from the first value it sees."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.seen: set[nn.Module] = set()

    def __call__(self, norm: Any, args: tuple[Any, ...]) -> None:
        if norm in self.seen:
            return
        self.seen.add(norm)
        x: Tensor = args[0]
        axes = [axis for axis in range(x.ndim) if axis != 1]
        mean, var = x.mean(axes), x.var(axes, unbiased=False)
        # Few positions hardly vary, and a norm that blew that up would blow up rounding as well.
        var = (var + mean.square()).clamp(min=max(x.square().mean().item(), 1e-4))
        norm.running_mean.copy_(mean + 0.3 * var.sqrt() * _uniform(mean, -1, 1, self.generator))
        norm.running_var.copy_(var * _uniform(var, 0.6, 1.6, self.generator))
