"""Keep a block's input alone for the backward pass, and compute its branches again there."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, branches: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return `branches(x)`; its backward pass computes the branches anew.

    Values, gradients and the norms' statistics are those of the plain run: the second time the
    statistics stay, and random numbers are drawn as they were.

    Args:
        block: holds the norms.
        branches: the sum of its branches.
        x: their input.

    Source: Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174.
    """

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), _statistics_kept(block)

    return checkpoint(branches, x, use_reentrant=False, context_fn=contexts)


@contextmanager
def _statistics_kept(block: nn.Module) -> Generator[None]:
    """Let norms use the batch and not note it."""
    norms = [module for module in block.modules() if isinstance(module, _NormBase)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
