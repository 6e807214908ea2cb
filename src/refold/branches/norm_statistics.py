"""Re-estimate the statistics of norms, without changing what they compute in eval mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from refold.algebra.norm import norm_affine
from refold.errors import InputError
from refold.inputs import call, required

Pair = tuple[nn.Module, nn.Module]


def calibrate(model: nn.Module, pairs: list[Pair], inputs: Iterable[Any]) -> None:
    """Measure mean and variance after each convolution and write them into its norm.

    Scale and shift of the norm change with them: eval mode computes the same, and training mode
    starts from statistics that are right. Norms without scale and shift stay as they are, and so
    do those that the inputs do not reach.

    Args:
        model: what to run, in eval mode; its modes are restored.
        pairs: convolutions, and the norm that reads each.
        inputs: batches, each in any form of `example_inputs`.

    Raises:
        InputError: when there is no input.

    Examples:
        >>> net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
        >>> x = 3 * torch.randn(64, 1, 4, 4)
        >>> calibrate(net, [(net[0], net[1])], [x])
        >>> torch.allclose(net[1].running_mean, net[0](x).mean())
        True
    """
    moments = {id(conv): _Moments() for conv, _ in pairs}
    handles = [conv.register_forward_hook(moments[id(conv)].see) for conv, _ in pairs]
    try:
        _run(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    for conv, norm in pairs:
        seen = moments[id(conv)]
        learns = all(norm._parameters.get(name) is not None for name in ("weight", "bias"))
        if seen.count > 1 and learns:
            _restate(cast(nn.BatchNorm2d, norm), *seen.result())


class _Moments:
    """Running count, mean and squared deviations per channel, merged batch by batch."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | None = None
        self.squares: Tensor | None = None

    def see(self, module: nn.Module, args: Any, output: Tensor) -> None:
        rows = output.detach().double().transpose(0, 1).flatten(1)
        count, mean = rows.shape[1], rows.mean(1)
        squares = (rows - mean[:, None]).square().sum(1)
        if self.mean is None or self.squares is None:
            self.count, self.mean, self.squares = count, mean, squares
            return
        total, step = self.count + count, mean - self.mean
        self.squares = self.squares + squares + step.square() * (self.count * count / total)
        self.mean = self.mean + step * (count / total)
        self.count = total

    def result(self) -> tuple[Tensor, Tensor]:
        """Return mean and unbiased variance, as torch's running statistics."""
        mean, squares = cast(Tensor, self.mean), cast(Tensor, self.squares)
        return mean, squares / (self.count - 1)


def _run(model: nn.Module, inputs: Iterable[Any]) -> None:
    modes = {part: part.training for part in model.modules()}
    run: Callable[..., Any] = model.eval()
    count = 0
    try:
        with torch.no_grad():
            for item in inputs:
                call(run, required(model, item))
                count += 1
    finally:
        for part, mode in modes.items():
            part.training = mode
    if not count:
        raise InputError("calibration has no inputs: give an iterable of batches")


def _restate(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor) -> None:
    """Write new statistics; scale and shift keep the norm's map."""
    old_mean, old_var = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    with torch.no_grad():
        mean, var = mean.to(old_mean.dtype), var.to(old_var.dtype)  # as stored: rounding counts
        kept = norm_affine(old_mean, old_var, norm.weight, norm.bias, norm.eps)
        plain = norm_affine(mean, var, None, None, norm.eps)
        slope, level = cast(Tensor, kept.scale), cast(Tensor, kept.shift)
        norm.weight.copy_(slope / cast(Tensor, plain.scale))
        norm.bias.copy_(level + slope * mean.double())
        old_mean.copy_(mean)
        old_var.copy_(var)
