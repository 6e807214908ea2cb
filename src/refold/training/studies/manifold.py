"""How much of a flat curve survives a ReLU in more and more dimensions.

A spiral in the plane is laid into n dimensions by a random linear map, goes through a ReLU, and is
brought back: by the pseudo-inverse of the map, as the article does, and by the best linear map.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import pi
from typing import NamedTuple

import torch
from torch import Tensor

from refold.training.seeds import generator_of

DIMENSIONS = (2, 3, 5, 8, 12, 15, 20, 25, 30)
_POINTS = 1000


class Lost(NamedTuple):
    """What is lost in one dimension with one map, each a share of 1.

    Args:
        inverse: squared error of the pseudo-inverse, relative to the spiral's own square.
        linear: the same of the best linear map.
        collapsed: points of which fewer than two numbers survive, so that nothing can tell them.
    """

    inverse: float
    linear: float
    collapsed: float


def spiral(points: int = _POINTS) -> Tensor:
    """Return a spiral around the origin: (points, 2), in float64.

    Examples:
        >>> spiral(5).shape
        torch.Size([5, 2])
    """
    turn = torch.linspace(0, 1, points, dtype=torch.float64)
    angle = 4 * pi * turn
    return torch.stack([angle.cos(), angle.sin()], 1) * (0.1 + 0.9 * turn)[:, None]


def lost(dimension: int, seed: int) -> Lost:
    """Return what a ReLU in so many dimensions loses of the spiral.

    Args:
        dimension: of the space, at least 2.
        seed: of the map.

    Examples:
        >>> lost(2, 0).inverse > lost(30, 0).inverse
        True

    Source: Sandler et al. 2018, MobileNetV2, arXiv:1801.04381, figure 1.
    """
    x = spiral()
    generator = generator_of(seed, "manifold", dimension)
    there = torch.randn(2, dimension, generator=generator, dtype=torch.float64)
    y = (x @ there).relu()  # (points, dimension)
    whole = x.square().sum()
    back = torch.linalg.pinv(there)
    best = torch.linalg.pinv(y) @ x
    gaps = [float((y @ way - x).square().sum() / whole) for way in (back, best)]
    return Lost(gaps[0], gaps[1], float(((y > 0).sum(1) < 2).double().mean()))


def losses(seeds: Sequence[int]) -> dict[int, list[Lost]]:
    """Return what is lost in each dimension, for each seed."""
    return {size: [lost(size, seed) for seed in seeds] for size in DIMENSIONS}
