"""A norm with several readers: into all of them, or into none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers.traps import bits, conv, gap, images, live, net, norms, same_bits, sound
from refold import plan

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
    [kept] = done.kept
    assert kept.reason.startswith("not all of its readers take it in: d, since a shift meets")


def test_a_reader_that_is_no_layer_keeps_it() -> None:
    def forward(self, x):
        y = self.b(x.relu())
        return self.c(y).relu() + y[:, :1, 1:-1, 1:-1].tanh()

    done = sound(net(forward, b=Norm(3), c=conv(padding=0)))
    assert norms(done.apply()) == 1
    assert [kept.reason for kept in done.kept] == ["not all of its readers take it in: getitem"]


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


def both(self, x):
    y = self.b(x)
    return self.left(y), self.right(y)


Scale = nn.Parameter


@pytest.mark.parametrize("first", ["norm", "factor"])
def test_readers_that_are_scales_get_layers_of_their_own(first: str) -> None:
    def forward(self, x):
        y = self.b(x)
        return (self.n(y), y * self.g) if first == "norm" else (y * self.g, self.n(y))

    model = net(forward, b=Norm(3), n=Norm(3), g=Scale(torch.randn(3, 1, 1)))
    done = sound(model)
    assert norms(done.apply()) == 0
    assert len(done.steps) == 2


def test_two_norms_read_one_norm() -> None:
    done = sound(net(both, b=Norm(3), left=Norm(3), right=Norm(3)))
    assert len(done.steps) == 2


def test_a_scale_made_by_a_fold_is_read_by_a_layer_a_factor_and_a_difference() -> None:
    def forward(self, x):
        y = torch.sub(x, x * 0.5, alpha=3)
        return self.c(y), self.g * y, 1.0 - y

    done = sound(net(forward, c=conv(3, 6, 1, stride=2), g=Scale(torch.randn(3, 1, 1))))
    assert len(done.steps) == 4


def test_one_reader_reads_what_another_gives() -> None:
    def forward(self, x):
        y = self.b(x)
        z = self.left(y)
        return z, self.right(y) + z.abs(), y * self.g + z

    parts = {"left": conv(3, 3, 1), "right": conv(3, 3, 1)}
    sound(net(forward, b=Norm(3), g=Scale(torch.randn(3, 1, 1)), **parts))


def test_readers_with_joins_of_values_that_are_replaced_with_them() -> None:
    def forward(self, x):
        y = self.b(x)
        z = self.c(y)
        return z.relu(), self.d(y) + z, self.e(y)

    done = sound(net(forward, b=Norm(3), c=conv(3, 4, 1), d=conv(3, 4, 1), e=conv(3, 4, 1)))
    assert norms(done.apply()) == 0


def test_a_value_read_twice_by_one_reader_stays() -> None:
    def forward(self, x):
        y = self.b(x)
        return torch.cat([y, self.c(y), y], 1), self.d(y)

    done = sound(net(forward, b=Norm(3), c=conv(3, 4, 1), d=conv(3, 4, 1)))
    assert norms(done.apply()) == 1


@pytest.mark.parametrize("gone", [True, False])
def test_a_value_that_is_also_an_output_stays(gone: bool) -> None:
    def forward(self, x):
        y = self.b(x)
        return (self.left(y), self.right(y)) if gone else (self.left(y), self.right(y), y)

    done = sound(net(forward, b=Norm(3), left=Norm(3), right=conv(3, 4, 1)))
    assert norms(done.apply()) == (0 if gone else 2)


def test_a_chain_of_shared_norms() -> None:
    def forward(self, x):
        y = self.b(x)
        z = self.n(y)
        return y * self.g, self.c(z), z * self.h, z.relu()

    gains = {name: Scale(torch.randn(3, 1, 1)) for name in "gh"}
    sound(net(forward, b=Norm(3), n=Norm(3), c=conv(3, 4, 1), **gains))


def test_what_comes_before_a_shared_norm_hosts_no_reader() -> None:
    """The layer before is held in place (its weight is tied), so norm and readers may only meet."""

    def forward(self, x):
        y = self.b(self.c(x))
        return self.d(y).relu(), self.e(y), self.c2(x)

    model = net(forward, b=Norm(3), c=conv(3, 3), c2=conv(3, 3), d=conv(3, 4, 1), e=conv(3, 4, 1))
    model.c2.weight = model.c.weight
    done = sound(model)
    assert norms(done.apply()) == 0
    assert done.apply().c.kernel_size == (3, 3)


def test_a_shared_pool_is_computed_once() -> None:
    def forward(self, x):
        y = self.pool(self.b(x))
        return self.left(y).relu(), self.right(y).tanh()

    model = net(forward, b=Norm(3), pool=nn.AvgPool2d(2), left=conv(3, 4, 1), right=conv(3, 4, 1))
    folded = sound(model).apply()
    assert norms(folded) == 0
    calls: list[int] = []
    folded.pool.register_forward_hook(lambda *_: calls.append(1))
    folded(images())
    assert len(calls) == 1
