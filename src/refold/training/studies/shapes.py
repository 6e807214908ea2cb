"""What a study turns a trained network into before training continues."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from refold.errors import RefusedError
from refold.folding import reparameterize
from refold.pruning import Importance, Layer, pruning, restore_norms
from refold.workload import Workload, workload_of

Shape = Callable[[nn.Module, Tensor], nn.Module]
"""Given a trained network and images of its training, the network that trains on."""

_ROUNDS = 7  # of halving: the ratio is then found to less than a hundredth
_FLOOR = 0.1  # of its channels every layer keeps


def pruned(share: float, importance: Importance, *, remove_residuals: bool) -> Shape:
    """Return what prunes a network to a share of its multiply-adds, and gives it norms again.

    Args:
        share: of those of the folded network, its residuals in place.
        importance: of the channels, as `refold.pruning.pruning` takes it.
        remove_residuals: whether residuals are written as plain chains first.
    """

    def shape(network: nn.Module, images: Tensor) -> nn.Module:
        example = images[:1]
        prune = partial(
            pruning, network, example, importance=importance, floor=_FLOOR, round_to=1,
            remove_residuals=remove_residuals,
        )  # fmt: skip
        budget = share * (folded_size(network, example).macs or 0)
        found = to_budget(lambda ratio: prune(ratio=ratio).model, budget, example)
        return restore_norms(found, [images])

    return shape


def to_budget(prune: Callable[[float], nn.Module], budget: float, example: Tensor) -> nn.Module:
    """Return the least pruned network within a budget, found by halving the ratio's interval.

    Args:
        prune: makes a network, given the ratio of channels that go.
        budget: multiply-adds of the folded network.
        example: to count them for.

    Raises:
        RefusedError: when nothing fits.
    """
    low, high, best = 0.0, 0.98, None
    for _ in range(_ROUNDS):
        ratio = (low + high) / 2
        found = prune(ratio)
        if (folded_size(found, example).macs or 0) <= budget:
            high, best = ratio, found
        else:
            low = ratio
    if best is None:
        raise RefusedError(f"no pruned network fits {budget:,.0f} multiply-adds")
    return best


def folded_size(network: nn.Module, example: Tensor) -> Workload:
    """Return the size of the folded network."""
    return workload_of(reparameterize(network, example), example)


def relative_scale(layer: Layer) -> Tensor:
    """Return norm scales over the mean of their layer: those of sums grow with every block."""
    return layer.scale / layer.scale[layer.rows].nanmean()
