"""Batch norms that see the batches of all processes, on any device; torch's own needs a GPU.

A synchronised norm is the same module with the same parameters: only its class is another one while
a run lasts, so that checkpoints and folding know nothing of it.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from refold.errors import RefusedError


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes; what flows back is summed in the same way."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def summed(value: Tensor) -> Tensor:
    """Return the sum over all processes, differentiable."""
    return cast(Tensor, _Sum.apply(value))


class _Synced(BatchNorm):
    """What the synchronised norms share: statistics of the whole batch when training."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised map; shape as before."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        axes = [axis for axis in range(input.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(input.ndim)]
        wide = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        own = wide.numel() // wide.shape[1]
        # Two passes, as the difference of large squares would lose what the variance is.
        sums = summed(torch.cat([wide.sum(axes), wide.new_tensor([float(own)])]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = wide - mean.view(shape)
        var = summed(centred.square().sum(axes)) / count  # (C,)
        self._track(mean.detach(), var.detach() * count / (count - 1))
        out = centred * (var + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(input.dtype)

    def _track(self, mean: Tensor, var: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        cast(Tensor, self.num_batches_tracked).add_(1)
        share = self.momentum
        if share is None:
            share = 1 / float(cast(Tensor, self.num_batches_tracked))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(var.to(self.running_var.dtype), share)


class SyncedNorm1d(_Synced, nn.BatchNorm1d):
    """`nn.BatchNorm1d` over the batches of all processes."""


class SyncedNorm2d(_Synced, nn.BatchNorm2d):
    """`nn.BatchNorm2d` over the batches of all processes."""


class SyncedNorm3d(_Synced, nn.BatchNorm3d):
    """`nn.BatchNorm3d` over the batches of all processes."""


_SYNCED: dict[type[BatchNorm], type[BatchNorm]] = {
    nn.BatchNorm1d: SyncedNorm1d,
    nn.BatchNorm2d: SyncedNorm2d,
    nn.BatchNorm3d: SyncedNorm3d,
}
_PLAIN = {synced: plain for plain, synced in _SYNCED.items()}


def sync_norms(model: nn.Module) -> int:
    """Make the batch norms of a model see all processes' batches, in place; return how many.

    Raises:
        RefusedError: when a norm is of a kind of its own, which cannot be synchronised.

    Examples:
        >>> net = nn.Sequential(nn.BatchNorm2d(3))
        >>> sync_norms(net), type(net[0]).__name__
        (1, 'SyncedNorm2d')
        >>> unsync_norms(net), type(net[0]).__name__
        (1, 'BatchNorm2d')
    """
    norms = [(path, m) for path, m in model.named_modules() if isinstance(m, BatchNorm)]
    for path, module in norms:
        if type(module) not in _SYNCED and type(module) not in _PLAIN:
            raise RefusedError(
                f"{path} is a {type(module).__name__}, which cannot see the batches of the other "
                "processes; train with sync_norms=false, where each process has its own statistics"
            )
    for _, module in norms:
        module.__class__ = _SYNCED.get(type(module), type(module))
    return len(norms)


def unsync_norms(model: nn.Module) -> int:
    """Undo `sync_norms`, in place; return how many norms it was."""
    norms = [m for m in model.modules() if isinstance(m, BatchNorm) and type(m) in _PLAIN]
    for module in norms:
        module.__class__ = _PLAIN[type(module)]
    return len(norms)
