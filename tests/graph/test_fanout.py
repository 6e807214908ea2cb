"""A norm with several readers: into all of them, or into none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from refold import plan
from traps import bits, conv, gap, images, live, net, norms, same_bits, sound

Norm = nn.BatchNorm2d


def fan(self, x):
    y = self.b(x.relu())
    return self.c(y).relu() + self.d(y).tanh()


def test_norm_goes_into_all_its_readers() -> None:
    done = sound(net(fan, b=Norm(3), c=conv(padding=0), d=conv(padding=0)))
    assert norms(done.apply()) == 0


def test_one_reader_that_cannot_take_it_keeps_it_for_all() -> None:
    done = sound(net(fan, b=Norm(3), c=conv(padding=0), d=conv(3, 4, 3, padding=0)))
    assert norms(done.apply()) == 0
    model = net(lambda self, x: (lambda y: self.c(y).relu() + self.d(y).tanh()[..., 1:-1, 1:-1])(
        self.b(x.relu())), b=Norm(3), c=conv(padding=0), d=conv())  # fmt: skip
    done = sound(model)
    assert norms(done.apply()) == 1
    assert not done.steps


def test_a_reader_that_is_no_layer_keeps_it() -> None:
    def forward(self, x):
        y = self.b(x.relu())
        return self.c(y).relu() + y[:, :1, 1:-1, 1:-1].tanh()

    done = sound(net(forward, b=Norm(3), c=conv(padding=0)))
    assert norms(done.apply()) == 1


def test_queries_keys_and_values() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = Norm(4)
            self.q, self.k, self.v = (conv(4, 4, 1) for _ in range(3))
            self.pool = nn.AvgPool2d(2)

        def forward(self, x):
            y = self.norm(x)
            small = self.pool(y)
            q, k, v = self.q(y).flatten(2), self.k(small).flatten(2), self.v(small).flatten(2)
            return (q.transpose(1, 2) @ k).softmax(-1) @ v.transpose(1, 2)

    done = sound(Attention(), images(2, 4, 8, 6))
    assert norms(done.apply()) == 0


@pytest.mark.parametrize("factor", [2.0, -0.5])
def test_a_number_with_several_readers(factor: float) -> None:
    def forward(self, x):
        y = factor * x.relu()
        return self.c(y).relu() + self.d(y).tanh()

    done = sound(net(forward, c=conv(), d=conv()))
    assert len(done.steps) == 2


def test_constant_on_the_left_with_several_readers() -> None:
    def forward(self, x):
        y = self.g * x.relu()
        return self.c(y).relu() + self.d(y).tanh()

    gamma = nn.Parameter(torch.randn(3, 1, 1))
    done = sound(net(forward, g=gamma, c=conv(), d=conv()))
    assert len(done.steps) == 2


def test_overflow_in_one_reader_leaves_all_readers_alone() -> None:
    model = live(net(fan, b=Norm(3), c=conv(padding=0), d=conv(padding=0)))
    with torch.no_grad():
        model.b.weight.fill_(1e3)
        model.d.weight.fill_(1e3)
    model = model.half()
    before = bits(model)
    done = plan(model, images().half())
    assert not done.steps
    assert gap(model, done.apply(), images().half()) == 0
    assert same_bits(before, bits(model))
