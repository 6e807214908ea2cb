"""From numbered images to batches: order, augmentation, unreadable images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from refold.errors import InputError
from refold.training.data.sources import Source, readable
from refold.training.seeds import generator_of, reseed, seeded
from refold.training.stopping import deafen

Transform = Callable[[Any, Any], tuple[Tensor, Any]]
Key = tuple[int, int]
"""An epoch and the number of an image."""


class Sample(NamedTuple):
    """An image ready for the network; `valid` is false where another one stands in for it."""

    image: Tensor
    target: Any
    valid: bool
    unreadable: tuple[int, ...]


class Batch(NamedTuple):
    """Images (N, C, H, W), targets (N, ...), and which of them are what was asked for."""

    images: Tensor
    targets: Tensor
    valid: Tensor
    unreadable: tuple[int, ...]


class Samples(Dataset[Sample]):
    """A source whose images are augmented as the seed, the epoch and their number say.

    An image that cannot be read is replaced by the next one that can.

    Args:
        source: the images.
        transform: what is done to an image and its target.
        seed: of the run.
    """

    def __init__(self, source: Source, transform: Transform, seed: int) -> None:
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> Sample:
        epoch, index = key
        unreadable: list[int] = []
        found = readable(self.source, index, unreadable.append)
        if found is None:
            raise InputError(f"no image can be read, {self.source.name(index)} for one")
        place = (self.seed, "image", epoch, index)
        if get_worker_info() is None:
            with seeded(*place):
                image, target = self.transform(*found)
        else:  # a process that only reads keeps no generators of anyone
            reseed(*place)
            image, target = self.transform(*found)
        return Sample(image, target, not unreadable, tuple(unreadable))


class TrainOrder(Sampler[list[Key]]):
    """The batches of an epoch, in an order that the seed and the epoch alone decide.

    Processes share every batch: that of the run is cut into equal parts, one a process, so the same
    batches are trained on whatever their number. What does not fill a batch is left out.

    Args:
        images: how many there are.
        batch: images of one step, of all processes together.
        seed: of the run.
        parts: into how many pieces a batch is cut: processes times accumulated pieces.
        rank: which process this is.
        world: how many processes there are.
    """

    def __init__(
        self, images: int, batch: int, seed: int, parts: int = 1, rank: int = 0, world: int = 1
    ) -> None:
        self.images, self.batch, self.seed = images, batch, seed
        self.parts, self.rank, self.world = parts, rank, world
        self.epoch, self.start = 0, 0

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return self.images // self.batch

    def at(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, and the step of it to begin with."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return (self.steps - self.start) * (self.parts // self.world)

    def __iter__(self) -> Iterator[list[Key]]:
        generator = generator_of(self.seed, "order", self.epoch)
        order: list[int] = torch.randperm(self.images, generator=generator).tolist()
        size = self.batch // self.parts
        for step in range(self.start, self.steps):
            for part in range(self.rank, self.parts, self.world):
                first = step * self.batch + part * size
                yield [(self.epoch, index) for index in order[first : first + size]]


class EvalOrder(Sampler[list[Key]]):
    """Every image once, in its own order, the batches dealt out to the processes."""

    def __init__(self, images: int, batch: int, rank: int = 0, world: int = 1) -> None:
        self.images, self.batch, self.rank, self.world = images, batch, rank, world

    def __len__(self) -> int:
        return len(range(self.rank * self.batch, self.images, self.world * self.batch))

    def __iter__(self) -> Iterator[list[Key]]:
        for first in range(self.rank * self.batch, self.images, self.world * self.batch):
            yield [(0, index) for index in range(first, min(first + self.batch, self.images))]


def collate(samples: Sequence[Sample]) -> Batch:
    """Return samples as one batch."""
    unreadable = {index for sample in samples for index in sample.unreadable}
    targets = [torch.as_tensor(sample.target, dtype=torch.long) for sample in samples]
    return Batch(
        default_collate([sample.image for sample in samples]),  # where all processes see it
        torch.stack(targets),
        torch.tensor([sample.valid for sample in samples]),
        tuple(sorted(unreadable)),
    )


def loader(samples: Samples, order: Sampler[list[Key]], workers: int) -> DataLoader[Any]:
    """Return a loader of batches, which are the same for any number of workers.

    Args:
        samples: the images.
        order: which go together.
        workers: processes that read; 0 to read in this one.
    """
    return DataLoader(
        samples,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        worker_init_fn=deafen,
        # Its own: a loader draws a number for its workers, which must not touch the network's.
        generator=torch.Generator(),
    )
