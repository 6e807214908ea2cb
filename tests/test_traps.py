"""Traps in models: sharing, in-place work, hooks, modes. A naive folder is wrong on every one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.naive import by_order, naive
from helpers.traps import conv, gap, images, live, net, norms, sound, trap
from refold import plan, reparameterize

Norm = nn.BatchNorm2d


class Block(nn.Module):
    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv, self.bn = conv(channels, channels), Norm(channels)

    def forward(self, x):
        return self.bn(self.conv(x)).relu()


# -- what is used twice


def test_convolution_shared_by_two_norms() -> None:
    # pytorch/pytorch#104593, #197539
    model = net(
        lambda self, x: self.b1(self.c(x)) + self.b2(self.c(x * 2)),
        c=conv(),
        b1=Norm(4),
        b2=Norm(4),
    )
    done = trap(model, reason="the module is called 2 times")
    assert norms(done.apply()) == 2


def test_norm_shared_by_two_convolutions() -> None:
    model = net(
        lambda self, x: self.b(self.c1(x)) * self.b(self.c2(x)), c1=conv(), c2=conv(), b=Norm(4)
    )
    trap(model, folder=by_order)


def test_block_called_twice_is_folded_once() -> None:
    done = trap(net(lambda self, x: self.block(self.block(x)), block=Block()))
    assert norms(done.apply()) == 0


def test_same_module_under_two_names() -> None:
    model = net(
        lambda self, x: self.b1(self.c(x)).relu() + self.b2(self.c2(-x)).tanh(),
        c=conv(), b1=Norm(4), b2=Norm(4),
    )  # fmt: skip
    model.c2 = model.c
    trap(model, reason="the module is called 2 times")


def test_alias_that_is_called_once_is_folded_under_both_names() -> None:
    model = nn.Sequential(conv(), Norm(4), nn.ReLU())
    model.head = nn.Module()
    model.head.same = model[0]
    folded = sound(net(lambda self, x: self.m[2](self.m[1](self.m[0](x))), m=model)).apply()
    assert norms(folded) == 0
    assert folded.m.head.same is folded.m[0]


def test_tied_weights() -> None:
    model = net(lambda self, x: self.b(self.c(x)).relu() + self.d(x), c=conv(), d=conv(), b=Norm(4))
    model.d.weight = model.c.weight
    done = trap(model, reason="shares its values with")
    folded = done.apply()
    assert folded.d.weight is folded.c.weight


def test_weight_that_is_also_read_by_a_function() -> None:
    def forward(self, x):
        return self.b(self.c(x)).relu() + F.conv2d(x, self.c.weight, padding=1)

    trap(net(forward, c=conv(), b=Norm(4)), reason="is read more than once")


def test_views_of_one_tensor_are_tied() -> None:
    model = net(lambda self, x: self.b(self.c(x)).relu() + self.d(x), c=conv(), d=conv(), b=Norm(4))
    model.double()
    both = torch.randn(2, *model.c.weight.shape, dtype=torch.float64)
    model.c.weight.data, model.d.weight.data = both[0], both[1]
    sound(model)  # two halves of one storage do not overlap, so both may fold


def test_value_with_a_second_consumer() -> None:
    def forward(self, x):
        y = self.c(x)
        return self.b(y).relu() + y

    trap(net(forward, c=conv(), b=Norm(4)), reason="is also read by")


def test_value_that_is_also_returned() -> None:
    def forward(self, x):
        y = self.c(x)
        return self.b(y), y

    trap(net(forward, c=conv(), b=Norm(4)), reason="is also read by")


# -- in-place work


def relu_twice_read(self, x):
    y = self.c(x)
    z = y.relu_()
    return self.b(y) + z


def relu_function(self, x):
    y = self.c(x)
    z = F.relu(y, inplace=True)
    return self.b(y) - z


def plus_alias(self, x):
    y = self.c(x)
    z = y
    z += self.d(x)
    return self.b(y) * z


def view_written(self, x):
    y = self.c(x)
    y[:, :2].mul_(2)
    return self.b(y)


def set_item(self, x):
    y = self.b(self.c(x))
    y[:, 0] = 0
    return y


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (relu_twice_read, None),
        (relu_function, None),
        (view_written, "in place while b reads it"),
        (set_item, None),
    ],
)
def test_in_place_change(forward, reason: str | None) -> None:
    trap(net(forward, c=conv(), b=Norm(4)), reason=reason)


def test_addition_in_place_under_another_name() -> None:
    sound(net(plus_alias, c=conv(), d=conv(), b=Norm(4)))


def test_input_changed_in_place_is_changed_by_the_result_too() -> None:
    def forward(self, x):
        x.mul_(2)
        return self.b(self.c(x)) + x

    model = live(net(forward, c=conv(3, 3), b=Norm(3)))
    folded = sound(model).apply()
    x, y = images(), images()
    folded(x), model(y)
    assert torch.equal(x, y)


def test_in_place_on_a_fresh_value_folds() -> None:
    def forward(self, x):
        y = self.b(self.c(x))
        y += self.d(x)
        return y.relu_()

    assert norms(sound(net(forward, c=conv(), d=conv(), b=Norm(4))).apply()) == 0


# -- modules that are not what they seem


def doubled_output(module, args, output):
    return output * 2 + 1


def doubled_input(module, args):
    return (args[0] * 2,)


def test_forward_hook() -> None:
    model = nn.Sequential(conv(), Norm(4), nn.ReLU())
    model[0].register_forward_hook(doubled_output)
    trap(model, reason="it has hooks")


def test_forward_pre_hook() -> None:
    model = nn.Sequential(conv(), Norm(4), nn.ReLU())
    model[1].register_forward_pre_hook(doubled_input)
    done = trap(model, reason="it has hooks")
    assert done.apply()[1]._forward_pre_hooks


class Doubled(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2 + 1


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = (self.weight - self.weight.mean()) / self.weight.std()
        return self._conv_forward(x, weight, self.bias)


class Rectified(Norm):
    def forward(self, x):
        return super().forward(x.abs())


def test_subclass_of_a_layer_is_judged_by_what_it_computes() -> None:
    assert norms(trap(nn.Sequential(Doubled(3, 4, 3), Norm(4))).apply()) == 0
    sound(nn.Sequential(Standardised(3, 4, 3), Norm(4)))
    trap(nn.Sequential(conv(), Rectified(4)))


# -- norms that are no scale and shift


def test_norm_without_running_statistics() -> None:
    model = nn.Sequential(conv(), Norm(4, track_running_stats=False))
    trap(model, reason="has no running statistics")


def test_norm_left_in_training_mode() -> None:
    model = live(nn.Sequential(conv(), Norm(4)))
    model[1].train()
    done = plan(model, images())
    assert any("call model.eval()" in kept.reason for kept in done.refusals)
    assert not done.steps
    assert done.apply()[1].training


@pytest.mark.parametrize(("options"), [{"affine": False}, {"eps": 0.1}])
def test_norm_options(options: dict) -> None:
    assert norms(trap(nn.Sequential(conv(), Norm(4, **options))).apply()) == 0


def test_zero_variance_is_kept_finite_by_eps() -> None:
    model = live(nn.Sequential(conv(), Norm(4, eps=1e-3)))
    model[1].running_var[0] = 0
    folded = naive(model)
    x = images()
    assert (folded(x) - model(x)).abs().max() > 1e-3  # a constant eps of 1e-5
    result = reparameterize(model, x)
    assert (result(x) - model(x)).abs().max() <= 1e-9 * model(x).abs().max()
    assert norms(result) == 0


def test_gamma_of_zero_is_no_divisor() -> None:
    model = live(nn.Sequential(conv(), Norm(4), conv(4, 2, padding=0)))
    with torch.no_grad():
        model[1].weight[1] = 0
    ring = -model[1].bias / model[1].weight  # what a border filled with -t / s would take
    assert not torch.isfinite(ring).all()
    folded = reparameterize(model, images())
    assert gap(model, folded, images()) <= 1e-9
    assert norms(folded) == 0


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.LayerNorm(9), nn.InstanceNorm2d(4)])
def test_norms_of_the_sample_are_left_alone(norm: nn.Module) -> None:
    done = sound(nn.Sequential(conv(), norm, nn.ReLU()))
    assert not done.steps
    assert isinstance(done.apply()[1], type(norm))
