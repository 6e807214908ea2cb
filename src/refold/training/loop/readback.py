"""Numbers that a device computes, read when they are there: nobody waits for them before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Readback:
    """Some numbers of a device, on their way to the host.

    They are copied as they are now: the device may overwrite them.

    Args:
        values: tensors of one number each, on one device.

    Examples:
        >>> Readback([torch.tensor(0.5), torch.tensor(3)]).read().tolist()
        [0.5, 3.0]
    """

    def __init__(self, values: Sequence[Tensor]) -> None:
        self._arrived: torch.cuda.Event | None = None
        if values[0].device.type != "cuda":
            self._host = torch.stack([value.cpu().double() for value in values])
            return
        row = torch.stack([value.double() for value in values])
        self._host = torch.empty(row.shape, dtype=row.dtype, pin_memory=True)
        self._host.copy_(row, non_blocking=True)
        self._arrived = torch.cuda.Event()
        self._arrived.record()

    def read(self) -> Tensor:
        """Return the numbers in float64, as soon as the device has computed them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host
