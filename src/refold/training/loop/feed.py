"""Batches on the device of the network, as it sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from refold.training.data.loader import Batch


class Feed:
    """Batches of a loader, moved to a device and made into what the network sees there.

    On a GPU the next batch travels while a step computes.

    Args:
        batches: of a loader, in memory that a GPU can read by itself where there is one.
        numbers: makes the network's numbers of a batch's images, on any device.
        device: where the network computes.
        channels_last: whether images lie in memory channel by channel within each pixel.
    """

    def __init__(
        self,
        batches: Iterable[Batch],
        numbers: Callable[[Tensor], Tensor],
        device: torch.device | str,
        *,
        channels_last: bool = False,
    ) -> None:
        self.batches, self.numbers, self.device = batches, numbers, torch.device(device)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches; `valid` stays where it is."""
        if self.device.type != "cuda":
            yield from map(self._moved, self.batches)
            return
        aside = torch.cuda.Stream(self.device)
        ahead: Batch | None = None
        for batch in self.batches:
            with torch.cuda.stream(aside):
                moved = self._moved(batch)
            if ahead is not None:
                yield ahead
            torch.cuda.current_stream(self.device).wait_stream(aside)
            for value in (moved.images, moved.targets):
                value.record_stream(torch.cuda.current_stream(self.device))
            ahead = moved
        if ahead is not None:
            yield ahead

    def _moved(self, batch: Batch) -> Batch:
        images = self.numbers(batch.images.to(self.device, non_blocking=True))
        return batch._replace(
            images=images.contiguous(memory_format=self.layout),
            targets=batch.targets.to(self.device, non_blocking=True),
        )
