"""Networks that draw random numbers."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from helpers.adversaries.base import Norm, Table, conv

CHANCE = Table()
each = CHANCE.forward


@each()
def scale(s: Any, x: Any) -> Any:
    return s.branches(x) * torch.rand(4, 1, 1, dtype=torch.float64)


@each()
def noise(s: Any, x: Any) -> Any:
    return s.branches(x) + torch.randn_like(x[:, :1])


@each()
def noise_before_a_norm(s: Any, x: Any) -> Any:
    y = s.c1(x)
    return s.b1(y + torch.randn(1, dtype=x.dtype)) + s.two(x)


@each()
def noise_in_place(s: Any, x: Any) -> Any:
    y = s.c1(x)
    return s.b1(y.mul_(torch.empty(1, dtype=x.dtype).uniform_())) + s.two(x)


@each()
def noise_of_a_new_tensor(s: Any, x: Any) -> Any:
    return s.branches(x) * x.new_empty(()).normal_()


@each()
def dropout_function(s: Any, x: Any) -> Any:
    return s.b1(F.dropout(s.c1(x), 0.5, training=True)) + s.two(x)


@each(lambda s: setattr(s, "drop", nn.Dropout(0.5)))
def dropout_switched_on(s: Any, x: Any) -> Any:
    s.drop.train()
    return s.b1(s.drop(s.c1(x)))


@each(lambda s: setattr(s, "drop", nn.Dropout2d(0.5)))
def dropout_that_trains(s: Any, x: Any) -> Any:
    return s.b1(s.drop.train()(s.c1(x)))


@each()
def mask(s: Any, x: Any) -> Any:
    return s.b1(s.c1(x) * torch.bernoulli(torch.full((1, 4, 1, 1), 0.5, dtype=x.dtype)))


@each()
def drop_path(s: Any, x: Any) -> Any:
    keep = x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(0.5)
    return s.one(x) + s.two(x) * keep


@each()
def channel_shuffle(s: Any, x: Any) -> Any:
    return s.b1(s.c1(x)[:, torch.randperm(4)])


@each()
def branch_on_a_draw(s: Any, x: Any) -> Any:
    return s.one(x) if torch.rand(()) < 0.5 else s.two(x)


@each()
def branch_on_an_item(s: Any, x: Any) -> Any:
    return s.one(x) if torch.randint(0, 2, (1,)).item() else s.two(x)


@each()
def python_branch(s: Any, x: Any) -> Any:
    return s.one(x) if random.random() < 0.5 else s.two(x)


@each()
def python_choice(s: Any, x: Any) -> Any:
    return random.choice([s.one, s.two])(x)


@each()
def python_scale(s: Any, x: Any) -> Any:
    return s.b1(s.c1(x) * random.uniform(0.5, 2.0))


@each(lambda s: setattr(s, "order", [0, 1]))
def python_shuffle(s: Any, x: Any) -> Any:
    random.shuffle(s.order)
    return (s.one, s.two)[s.order[0]](x)


@each(lambda s: setattr(s, "dice", random.Random(3)))
def python_generator_of_its_own(s: Any, x: Any) -> Any:
    return s.b1(s.c1(x) * s.dice.random())


@each()
def numpy_scale(s: Any, x: Any) -> Any:
    return s.b1(s.c1(x) * np.random.rand())


@each(lambda s: setattr(s, "dice", np.random.default_rng(3)))
def numpy_generator_of_its_own(s: Any, x: Any) -> Any:
    return s.b1(s.c1(x) * float(s.dice.random()))


@each(lambda s: setattr(s, "dice", np.random.RandomState(3)))
def numpy_state_of_its_own(s: Any, x: Any) -> Any:
    return s.b1(s.c1(x) + torch.from_numpy(s.dice.rand(4, 1, 1)))


@each(lambda s: setattr(s, "seed", 3))
def torch_generator(s: Any, x: Any) -> Any:
    dice = torch.Generator().manual_seed(s.seed)
    return s.b1(s.c1(x) * torch.rand(4, 1, 1, generator=dice, dtype=x.dtype))


@each()
def seeded(s: Any, x: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        gain = torch.rand(4, 1, 1, dtype=x.dtype)
    return s.b1(s.c1(x) * gain)


@each()
def distribution(s: Any, x: Any) -> Any:
    y = s.one(x)
    return torch.distributions.Normal(y, y.abs() + 1).rsample() + s.two(x)


@each()
def normal_of_values(s: Any, x: Any) -> Any:
    return s.branches(x) + torch.normal(s.b1.running_mean, 1.0).view(-1, 1, 1)


@each()
def multinomial(s: Any, x: Any) -> Any:
    pick = torch.multinomial(s.b1.running_var, 2)
    return s.branches(x)[:, pick]


@each()
def leaky_at_random(s: Any, x: Any) -> Any:
    return s.head(F.rrelu(s.branches(x), training=True))


@each()
def gumbel(s: Any, x: Any) -> Any:
    return F.gumbel_softmax(s.branches(x), dim=1)


@each(lambda s: setattr(s, "pool", nn.FractionalMaxPool2d(2, output_size=2)))
def pool_at_random(s: Any, x: Any) -> Any:
    return s.pool(s.branches(x))


@each()
def rotated_at_random(s: Any, x: Any) -> Any:
    return s.one(torch.rot90(x, random.randrange(4), (2, 3)))


@each()
def crop_at_random(s: Any, x: Any) -> Any:
    top = int(torch.randint(0, 2, ()))
    return s.one(x[:, :, top : top + 3])


@each(lambda s: setattr(s, "layers", nn.Sequential(nn.Sequential(conv(), Norm(4)))))
def layer_drop(s: Any, x: Any) -> Any:
    y = s.one(x)
    for layer in s.layers:
        if random.random() > 0.5:
            y = y + layer(x)
    return y
