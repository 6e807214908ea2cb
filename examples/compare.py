"""What every example prints: how far two modules are apart, in float64 and in float32."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def enliven(module: nn.Module, seed: int = 0) -> nn.Module:
    """Return the module in eval mode, its norms with random statistics and scales of both signs.

    Fresh norms change nothing, so that folding them wrongly would show no difference.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif "bn" in name and tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return module.eval()


@torch.no_grad()
def difference(reference: nn.Module, candidate: nn.Module, x: Tensor) -> float:
    """Return the largest difference of two outputs relative to the largest output."""
    expected, got = reference(x), candidate(x)
    return ((expected - got).abs().max() / expected.abs().max()).item()


def show(title: str, reference: nn.Module, candidate: nn.Module, x: Tensor) -> None:
    """Print the difference of two equal modules, given in float64, in float64 and in float32."""
    wide = difference(reference, candidate, x)
    narrow = [copy.deepcopy(module).float() for module in (reference, candidate)]
    single = difference(narrow[0], narrow[1], x.float())
    print(f"{title:35} {tuple(x.shape)!s:20} float64 {wide:.1e}   float32 {single:.1e}")
