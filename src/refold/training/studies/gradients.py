"""How strongly the gradients of a network at neighbouring inputs correlate.

In a plain network the correlation falls with every layer, until a gradient says nothing about the
next image; residuals keep it. Balduzzi et al. 2017 call that shattered gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from refold.training.run.restored import network_of
from refold.training.seeds import generator_of
from refold.training.studies.images import images_of

_PLACES, _STEP = 16, 1 / 256
_LINES = 4
_CALIBRATED = 256  # images that a network's norms see before it has trained


def correlation(network: nn.Module, images: Sequence[Tensor], seed: int = 0) -> float:
    """Return the mean cosine of the gradients at neighbouring inputs.

    On the straight line from each image to the next stand 16 inputs, and behind each a neighbour,
    1/256 of the line further on. The gradient is that of a random sum of the outputs with respect
    to the input. A linear network gives 1, gradients that shatter give 0.

    Args:
        network: in evaluation mode; it returns (N, classes).
        images: two or more, each (C, H, W).
        seed: of the random sum.

    Examples:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> round(correlation(net, [torch.zeros(1, 2, 2), torch.ones(1, 2, 2)]), 6)
        1.0

    Source: Balduzzi et al. 2017, arXiv:1702.08591.
    """
    found: list[Tensor] = []
    place = torch.linspace(0, 1, _PLACES)
    share = torch.cat([place, place + _STEP]).view(-1, 1, 1, 1)
    for one, other in pairwise(images):
        points = torch.lerp(one, other, share).requires_grad_()  # (2 * places, C, H, W)
        out = network(points)
        sum_of = torch.randn(out.shape[1], generator=generator_of(seed, "gradients"))
        (gradient,) = torch.autograd.grad((out @ sum_of).sum(), points)
        here, there = gradient.flatten(1).double().chunk(2)
        found.append(F.cosine_similarity(here, there, eps=1e-300))
    return float(torch.stack(found).mean())


def correlations(run: Path) -> dict[str, float]:
    """Return the correlation in the network of a run as it started, and after its training.

    The norms of a network that has not trained get the statistics of training images.
    """
    fresh, trained = network_of(run, None), network_of(run)
    update_bn([images_of(run, _CALIBRATED, train=True)], fresh)
    lines = list(images_of(run, _LINES + 1, train=False))
    return {
        "start": correlation(fresh.eval(), lines), "trained": correlation(trained, lines)
    }  # fmt: skip
