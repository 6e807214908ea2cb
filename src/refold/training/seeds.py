"""Randomness that depends on what is computed, not on which process computes it or in what order.

Every random decision of a training run is drawn from a seed made of the run's seed and of the place
of the decision: the epoch for the order, epoch and image for its augmentation, the step for the
network's own (dropout). So any number of loader workers gives the same images, and a run that goes
on from a checkpoint draws what it would have drawn.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Generator
from contextlib import contextmanager

import torch

_BITS = 63  # torch takes a signed 64-bit seed


def seed_of(*place: int | str) -> int:
    """Return a seed for a place, such as (seed, "order", epoch).

    Examples:
        >>> seed_of(0, "order", 1) == seed_of(0, "order", 1)
        True
        >>> seed_of(0, "order", 1) == seed_of(0, "order", 2)
        False
    """
    text = "/".join(map(str, place)).encode()
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest, "little") >> (64 - _BITS)


def generator_of(*place: int | str) -> torch.Generator:
    """Return a separate generator for a place.

    Examples:
        >>> torch.randperm(3, generator=generator_of(0, "order", 1)).shape
        torch.Size([3])
    """
    return torch.Generator().manual_seed(seed_of(*place))


def reseed(*place: int | str) -> None:
    """Seed the CPU's global generators for good, in a process that does nothing else.

    Examples:
        >>> with seeded():
        ...     reseed(0, "image", 3)
        ...     first = torch.rand(1)
        ...     reseed(0, "image", 3)
        ...     print(torch.equal(torch.rand(1), first))
        True
    """
    import numpy as np

    seed = seed_of(*place)
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextmanager
def seeded(*place: int | str) -> Generator[None]:
    """Seed the CPU's global generators for a block, and restore them after it.

    torchvision draws from torch's, other augmentation from Python's and NumPy's.

    Examples:
        >>> with seeded(0, "image", 3):
        ...     first = torch.rand(1)
        >>> with seeded(0, "image", 3):
        ...     print(torch.equal(torch.rand(1), first))
        True
    """
    import numpy as np

    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        reseed(*place)
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])
