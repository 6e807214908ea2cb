"""Live norm statistics for an untrained network, so that checking its fold proves something.

A fresh norm has mean 0 and variance 1, which hide most wrong folds. Here each norm gets a random
scale of either sign, the statistics of its real inputs, and then a random push away from them, so
activations stay of ordinary size however deep the network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refold.errors import InputError, one_line
from refold.sources.guest import restored

if TYPE_CHECKING:
    import torch
    from torch import nn


def initial_norms(model: nn.Module) -> list[nn.Module]:
    """Return the norms whose statistics are still exactly those of a new layer."""
    return [module for module in model.modules() if _has_initial_statistics(module)]


def _has_initial_statistics(module: nn.Module) -> bool:
    import torch

    mean, var = _statistics(module)
    if mean is None or var is None:
        return False
    return bool(torch.all(mean == 0)) and bool(torch.all(var == 1))


def _statistics(module: nn.Module) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    buffers = dict(module.named_buffers(recurse=False))
    return buffers.get("running_mean"), buffers.get("running_var")


def enliven(model: nn.Module, example_inputs: tuple[torch.Tensor, ...], seed: int) -> int:
    """Give every norm with initial statistics live ones, in place; return how many there were."""
    import torch

    norms = initial_norms(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for norm in norms:
            _randomise_affine(norm, generator)
        _observe(model, norms, example_inputs)
        for norm in norms:
            _push(norm, generator)
    return len(norms)


def _randomise_affine(norm: nn.Module, generator: torch.Generator) -> None:
    import torch

    affine = dict(norm.named_parameters(recurse=False)) | dict(norm.named_buffers(recurse=False))
    weight, bias = affine.get("weight"), affine.get("bias")
    if weight is not None:
        size = torch.rand(weight.shape, generator=generator) + 0.5
        sign = torch.where(torch.rand(weight.shape, generator=generator) < 0.25, -1.0, 1.0)
        weight.copy_(size * sign)
    if bias is not None:
        bias.copy_(0.2 * torch.randn(bias.shape, generator=generator))


def _observe(
    model: nn.Module, norms: list[nn.Module], example_inputs: tuple[torch.Tensor, ...]
) -> None:
    """Run one forward in which only the norms train, at momentum 1."""
    import torch

    # Frozen and exported forms, which have no momentum, cannot observe; they only get the push.
    momenta = {norm: norm.momentum for norm in norms if hasattr(norm, "momentum")}
    if not momenta:
        return
    # Two different examples at least: a 1x1 map of one example has no variance.
    batch = [torch.cat([x, -x if x.is_floating_point() else x]) for x in example_inputs]
    try:
        for norm in momenta:
            norm.training = True
            norm.momentum = 1.0  # type: ignore[assignment]  # a plain attribute of every tracked norm
        with restored():
            model(*batch)
    except Exception as error:
        raise InputError(
            f"the norms cannot take statistics from a batch of {len(batch[0])} "
            f"({one_line(error)}): pass --no-live-statistics"
        ) from error
    finally:
        for norm, momentum in momenta.items():
            norm.training = False
            norm.momentum = momentum


def _push(norm: nn.Module, generator: torch.Generator) -> None:
    import torch

    mean, var = _statistics(norm)
    if mean is None or var is None:
        return
    spread = var.clamp(min=1e-6).sqrt().cpu()
    mean.add_((0.2 * spread * torch.randn(mean.shape, generator=generator)).to(mean))
    var.copy_(var.clamp(min=1e-6) * (0.6 + torch.rand(var.shape, generator=generator)).to(var))
