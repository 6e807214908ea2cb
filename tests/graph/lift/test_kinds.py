"""Which values have one type: looked up once each, however many paths lead to them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import refold
from helpers.traps import conv, gap, images, live, net, norms


def test_a_cast_behind_many_sums_is_looked_up_in_no_time() -> None:
    """Two ways through each of sixty sums: nobody lives to see them all."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x).relu()
        return self.norm(self.last(x.to(x.dtype)).to(self.last.weight.dtype))

    layers = nn.ModuleList(conv(3, 3, 1) for _ in range(60))
    model = live(net(forward, layers=layers, last=conv(), norm=nn.BatchNorm2d(4)))
    folded = refold.reparameterize(model, images(1, 3, 4, 4))
    assert gap(model, folded, images(1, 3, 4, 4)) <= 1e-9
    assert norms(folded) == 0
