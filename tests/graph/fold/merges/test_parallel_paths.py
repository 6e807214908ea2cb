"""Parallel paths of one make become one path where the join takes in all of it, and only there."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.traps import conv, images, net, sound
from refold import plan

Norm = nn.BatchNorm2d


def groups(model: nn.Module) -> list[int]:
    return sorted(part.groups for part in model.modules() if isinstance(part, nn.Conv2d))


def folded(model: nn.Module, x: Tensor | None = None) -> nn.Module:
    done = sound(model, *(() if x is None else (x,)))
    return done.apply()


class Paths(nn.Module):
    """Paths of a 1x1, a 3x3 and whatever ends them, joined by `join`."""

    def __init__(self, *paths: nn.Module, join: Any) -> None:
        super().__init__()
        self.paths = nn.ModuleList(paths)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        return self.join([path(x) for path in self.paths])


def path(width: int = 2, act: type[nn.Module] = nn.ReLU, out: int | None = 5) -> nn.Sequential:
    """Return a path of form (a), or (without `out`) of form (b)."""
    last = () if out is None else (conv(width, out, 1, bias=False), Norm(out))
    return nn.Sequential(
        conv(3, width, 1, bias=False), Norm(width), act(), conv(width, width), Norm(width), act(),
        *last,
    )  # fmt: skip


def add(values: list[Tensor]) -> Tensor:
    return sum(values[1:], values[0]).relu()


def lay(values: list[Tensor]) -> Tensor:
    return torch.cat(values, 1)


@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.PReLU, nn.Hardswish])
def test_a_sum_of_paths_is_one_path(act: type[nn.Module]) -> None:
    model = folded(Paths(*(path(act=act) for _ in range(3)), join=add))
    assert groups(model) == [1, 1, 3]
    assert sum(isinstance(part, act) for part in model.modules()) == 2
    assert not any(isinstance(part, (Norm, nn.ModuleList)) for part in model.modules())


def test_paths_side_by_side_are_one_path() -> None:
    """The simplified Inception module: one 1x1 and one 3x3 of three groups."""
    model = folded(Paths(*(path(out=None) for _ in range(3)), join=lay))
    assert groups(model) == [1, 3]


def test_a_layer_reads_the_whole() -> None:
    """Form (b): what follows the concatenation reads the grouped convolution."""
    model = nn.Sequential(Paths(path(out=None), path(out=None), join=lay), conv(4, 5, 1))
    assert groups(folded(model)) == [1, 1, 2]


def test_slopes_of_each_path_stay_its_own() -> None:
    def slopes() -> nn.Sequential:
        made = path(act=lambda: nn.PReLU(2))  # type: ignore[arg-type]
        for layer in (made[2], made[5]):
            nn.init.uniform_(layer.weight, -1, 1)
        return made

    model = folded(Paths(slopes(), slopes(), join=add))
    assert groups(model) == [1, 1, 2]
    assert [len(p.weight) for p in model.modules() if isinstance(p, nn.PReLU)] == [4, 4]


def test_functions_and_methods_are_told_apart_by_their_arguments() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        a, b = F.leaky_relu(self.a(x), 0.2), F.leaky_relu(self.b(x), self.slope)
        return self.c(a) + self.d(b)

    for slope, wanted in ((0.2, [1, 1]), (0.3, [1, 1, 1, 1])):
        layers = {"a": conv(3, 2), "b": conv(3, 4), "c": conv(2, 5), "d": conv(4, 5)}
        assert groups(folded(net(forward, slope=slope, **layers))) == wanted


def test_methods_in_place_too() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.c(self.a(x).relu_()) + self.d(self.b(x).relu_())

    layers = {"a": conv(3, 2), "b": conv(3, 4), "c": conv(2, 5), "d": conv(4, 5)}
    assert groups(folded(net(forward, **layers))) == [1, 1]


def test_slices_of_one_value_are_the_value() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        a, b = self.stem(x).relu().chunk(2, 1)
        return torch.cat([self.a(a).tanh(), self.b(b).tanh()], 1)

    layers = {"stem": conv(3, 6), "a": conv(3, 2), "b": conv(3, 2)}
    assert groups(folded(net(forward, **layers))) == [1, 2]


def test_other_branches_stay_beside_them() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return add([self.a(x), self.skip(x), self.b(x), x[:, :1] + self.skip(x).tanh()])

    model = folded(net(forward, a=path(out=5), b=path(out=5), skip=conv(3, 5, 1)))
    assert groups(model) == [1, 1, 1, 2]


def unlike_windows(self: Any, x: Tensor) -> Tensor:
    return self.c(self.a(x).relu()) + self.d(self.b(x).relu())


def read_twice(self: Any, x: Tensor) -> Tensor:
    a, b = self.a(x).relu(), self.b(x).relu()
    return self.c(a) + self.d(b) + a.mean()


def other_functions(self: Any, x: Tensor) -> Tensor:
    return self.c(self.a(x).relu()) + self.d(self.b(x).tanh())


def other_values(self: Any, x: Tensor) -> Tensor:
    return self.c(self.a(x).relu()) + self.d(self.b(x.exp()).relu())


def no_joint_reader(self: Any, x: Tensor) -> Tensor:
    """As before GoogLeNet's towers: siblings alone gain nothing."""
    return self.c(self.a(x).relu()).relu() * self.d(self.b(x).relu()).sigmoid()


def bare_sum(self: Any, x: Tensor) -> Tensor:
    return self.c(self.a(x).relu() + self.b(x).relu())


APART = [
    (unlike_windows, {"b": conv(3, 4, 1)}), (read_twice, {}), (other_functions, {}),
    (other_values, {}), (no_joint_reader, {}), (bare_sum, {"d": nn.Identity()}),
]  # fmt: skip


@pytest.mark.parametrize(("forward", "other"), APART)
def test_paths_that_no_join_takes_in_stay_apart(forward: Any, other: dict[str, nn.Module]) -> None:
    layers = {"a": conv(3, 4), "b": conv(3, 4), "c": conv(4, 5), "d": conv(4, 5), **other}
    model = net(forward, **layers)
    assert groups(folded(model)) == groups(model)


def test_towers_of_different_widths_stay_apart() -> None:
    """A grouped convolution has groups of one width: more multiply-adds otherwise."""
    assert groups(folded(Paths(path(2), path(3), join=add))) == [1] * 6


def test_paths_that_stay_apart_have_a_reason() -> None:
    layers = {"a": conv(3, 4), "b": conv(3, 4), "c": conv(4, 5), "d": nn.Identity()}
    for model, reason in (
        (net(bare_sum, **layers), "would read slices"),
        (Paths(path(2), path(3), join=add), "would not be as cheap"),
    ):
        [kept] = plan(model.eval(), images().float()).kept
        assert "its parallel paths stay apart" in kept.reason
        assert reason in kept.reason


def test_paths_that_are_one_in_the_end_are_in_no_entry_of_what_stayed() -> None:
    model = nn.Sequential(Paths(path(out=None), path(out=None), join=lay), conv(4, 5, 1))
    assert not plan(model.eval(), images().float()).kept


def test_a_shape_that_is_read_stays() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        a, b = self.a(x).relu(), self.b(x).relu()
        return (self.c(a) + self.d(b)).flatten(2) * a.shape[1]

    layers = {"a": conv(3, 2), "b": conv(3, 4), "c": conv(2, 5), "d": conv(4, 5)}
    assert groups(folded(net(forward, **layers))) == [1, 1, 1, 1]


def test_values_that_change_in_place_stay() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = x.exp()
        a = self.a(y).relu()
        y.mul_(2)
        return self.c(a) + self.d(self.b(y).relu())

    layers = {"a": conv(3, 2), "b": conv(3, 4), "c": conv(2, 5), "d": conv(4, 5)}
    assert groups(folded(net(forward, **layers))) == [1, 1, 1, 1]


def test_without_an_example_nothing_is_decided() -> None:
    model = Paths(path(), path(), join=add).eval()
    assert groups(plan(model).apply()) == [1] * 6


def test_the_plan_names_all_the_paths() -> None:
    model = Paths(*(path() for _ in range(6)), join=add).eval()
    steps = plan(model, images().float()).steps
    found = next(step for step in steps if "more" in step.detail)
    assert re.fullmatch(r"paths.0.0 \+ paths.0.1 \+ 9 more \+ paths.5.1", found.detail)
    assert (found.parameters_before, found.parameters_after) == (6 * 10, 6 * 8)
    assert found.macs_before == found.macs_after == 2 * 3 * 12 * 11 * 9  # two images


def test_frozen_paths_stay_frozen_and_in_their_precision() -> None:
    model = Paths(path(), path(), join=add).eval().requires_grad_(False).half()
    x = images().half()
    found = plan(model, x).apply()
    assert groups(found) == [1, 1, 2]
    assert {(p.dtype, p.requires_grad) for p in found.parameters()} == {(torch.float16, False)}
