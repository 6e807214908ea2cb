"""How often the code of a model runs while it is folded: counted, never timed.

A run that can tell nothing new is not made; one that can tell is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import refold
from helpers.traps import conv, gap, images, live, net, norms
from refold.graph import driver
from refold.graph.trace import recording

X = images(1, 3, 12, 12)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Note every recording that is made."""
    made: list[Any] = []
    run = recording._run

    def counted(recorder: Any, *args: Any, **options: Any) -> None:
        made.append(recorder)
        run(recorder, *args, **options)

    monkeypatch.setattr(recording, "_run", counted)
    return made


def fold(model: nn.Module, example: Any = X) -> nn.Module:
    return refold.reparameterize(model, example, check=False)


def block(choose: Callable[[nn.Module, Tensor], Any]) -> nn.Module:
    return net(
        choose, conv=nn.Conv2d(3, 3, 3, 1, 1), norm=nn.BatchNorm2d(3), far=nn.Conv2d(3, 3, 1)
    )


def asks(self: Any, x: Tensor) -> Tensor:
    y = self.norm(self.conv(x) + self.far(x))
    if x.shape[-1] > 4:
        return y.relu()
    return y.relu()


def test_a_harmless_question_of_many_blocks_costs_as_many_runs_as_that_of_one(
    runs: list[Any],
) -> None:
    counts: list[int] = []
    for blocks in (2, 9):
        runs.clear()
        model = live(nn.Sequential(*(block(asks) for _ in range(blocks))))
        folded = fold(model)
        counts.append(len(runs))
        assert norms(folded) == 0
        assert all(gap(model, folded, images(1, 3, 7, side)) <= 1e-9 for side in (3, 20))
    assert counts[0] == counts[1] < 8


def test_answers_that_make_up_for_each_other_are_tried_one_by_one() -> None:
    """Both blocks say what they saw: turned round together, they agree as before."""

    def says(self: Any, x: Tensor) -> Any:
        return self.conv(x), x.shape[-1] > 6

    def compares(self: Any, x: Tensor) -> Tensor:
        y, first = self.one(x)
        z, second = self.two(F.avg_pool2d(y, 2))
        return self.norm(self.far(z)) if first is second else self.far(z).relu()

    parts = {"one": net(says, conv=conv()), "two": net(says, conv=nn.Conv2d(4, 4, 1))}
    model = live(net(compares, **parts, far=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)))
    folded = refold.plan(model, images(1, 3, 20, 20)).apply()
    assert all(gap(model, folded, images(1, 3, side, side)) <= 1e-9 for side in (20, 10, 5))


def _says_more(self: Any, x: Tensor) -> Tensor:
    torch._assert(x.shape[-1] > 0, f"{x.shape[-1]} columns are too few")
    return self.norm(self.conv(x))


def _keeps_by_device(self: Any, x: Tensor) -> Tensor:
    key = str(x.device)
    torch._assert(len(key) > 2, "no device")
    return self.norm(self.conv(x)).reshape(x.shape[0], -1)


@pytest.mark.parametrize("forward", [_says_more, _keeps_by_device])
def test_a_text_for_people_and_the_name_of_a_device_tell_no_size(
    forward: Callable[..., Any], runs: list[Any]
) -> None:
    folded = fold(live(block(forward)))
    assert norms(folded) == 0
    assert len(runs) < 10  # a size that is lost costs fourteen


def _decides_by_text(self: Any, x: Tensor) -> Tensor:
    return self.norm(self.conv(x)) if f"{x.shape[-1]}" != "17" else self.norm(x)


def _decides_by_shape(self: Any, x: Tensor) -> Tensor:
    return self.norm(self.conv(x)) if not str(x.shape).endswith("17])") else self.norm(x)


@pytest.mark.parametrize("forward", [_decides_by_text, _decides_by_shape])
def test_a_text_that_decides_is_a_number(forward: Callable[..., Any]) -> None:
    model = live(block(forward))
    folded = fold(model)
    assert all(gap(model, folded, images(1, 3, 8, side)) <= 1e-9 for side in (12, 17, 30))


class Pair:
    """What a helper returns: two values and no container."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


def test_steps_that_cannot_be_written_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code around an object stays; so does a method that it calls twice: no fold starts over."""

    class Prepares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean = torch.tensor([0.1, 0.2, 0.3]).double().view(3, 1, 1)

        def scale(self, x: Tensor) -> Tensor:
            return (x - self.mean) / (self.mean + 1)

        def forward(self, x: Tensor) -> Pair:
            return Pair(self.scale(x) + self.scale(x.flip(-1)))

    def body(self: Any, pair: Pair) -> Tensor:
        y = self.conv(pair.value)
        return y if float(y.sum()) < 1e9 else -y

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.norm(self.far(self.body(self.prepare(x))))

    parts = {"far": nn.Conv2d(4, 4, 1), "norm": nn.BatchNorm2d(4)}
    model = live(net(forward, prepare=Prepares(), body=net(body, conv=conv()), **parts))
    rounds: list[Any] = []
    captured = driver.capture_all
    monkeypatch.setattr(
        driver, "capture_all", lambda *a, **k: rounds.append(a) or captured(*a, **k)
    )
    folded = fold(model)
    assert norms(folded) == 0
    assert gap(model, folded, images(2, 3, 9, 9)) <= 1e-9
    assert len(rounds) == 1


class Casts(nn.Linear):
    """A linear layer that says its precision in TorchScript."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return F.linear(x, self.weight.to(x.dtype), bias=self.bias.to(dtype=x.dtype))
        return F.linear(x, self.weight, self.bias)


def test_a_cast_to_the_same_precision_is_no_other_path() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return (self.one(x) + self.two(x)) / 2

    model = live(net(forward, one=Casts(3, 5), two=Casts(3, 5)))
    x = images(4, 3)
    folded = fold(model, x)
    assert sum(isinstance(part, nn.Linear) for part in folded.modules()) == 1
    assert gap(model, folded, x) <= 1e-9


def test_a_cast_to_fewer_bits_is_another_path() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        weight = self.one.weight.half() if torch.jit.is_scripting() else self.one.weight
        return F.linear(x, weight.to(x.dtype)) + self.two(x)

    model = live(net(forward, one=nn.Linear(3, 5, bias=False), two=nn.Linear(3, 5)))
    folded = fold(model, images(4, 3))
    assert sum(isinstance(part, nn.Linear) for part in folded.modules()) == 2


class Lazy(nn.Module):
    """Finds its factor at the first call, as poolers of detectors do; `counts` changes it again."""

    def __init__(self, *, counts: bool) -> None:
        super().__init__()
        self.factor, self.counts = 0.0, counts

    def forward(self, x: Tensor) -> Tensor:
        if self.counts or self.factor == 0.0:
            self.factor = self.factor + 2.0
        return x * self.factor


def test_later_calls_are_run_in_one_go_until_one_changes_nothing(runs: list[Any]) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.far(self.lazy(self.norm(self.conv(x))))

    found = dict[bool, int]()
    for counts in (False, True):
        runs.clear()
        parts = {"conv": conv(), "norm": nn.BatchNorm2d(4), "far": nn.Conv2d(4, 3, 1)}
        model = live(net(forward, lazy=Lazy(counts=counts), **parts))
        folded = fold(model)
        found[counts] = len(runs)
        assert norms(folded) == 0
        assert all(gap(model, folded, images(1, 3, 9, 9)) <= 1e-9 for _ in range(3))
    assert found[False] == found[True] - 1 <= 9


def plain(self: Any, x: Tensor) -> Tensor:
    return F.relu(self.norm(self.conv(x)) * 0.5).mean((2, 3))


def by_a_size(self: Any, x: Tensor) -> Tensor:
    return plain(self, x).view(x.shape[0], -1)


def by_a_type(self: Any, x: Tensor) -> Tensor:
    return plain(self, x).to(x.dtype)


def of_a_slice(self: Any, x: Tensor) -> Tensor:
    return plain(self, x[:, :3])


def with_a_made_up_number(self: Any, x: Tensor) -> Tensor:
    return plain(self, x) * (0.125 + 0.25)


DICE = iter([0.31, 0.32, 0.33, 0.34, 0.35] * 9)


def with_a_number_of_this_run(self: Any, x: Tensor) -> Tensor:
    return plain(self, x) * next(DICE)


@pytest.mark.parametrize(
    ("forward", "is_enough"),
    [
        (plain, True),
        (with_a_made_up_number, True),  # Python has added the two before anything runs
        (by_a_size, False),
        (by_a_type, False),
        (of_a_slice, False),
        (with_a_number_of_this_run, False),
    ],
)
def test_code_that_asks_nothing_is_recorded_once(
    runs: list[Any], forward: Callable[..., Any], is_enough: bool
) -> None:
    fold(live(block(forward)))
    recorded = sum(not run.counts_only for run in runs)
    assert (recorded == 1) == is_enough


class Picks(nn.Module):
    """A head that asks which of its scores are high."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.score(x)
        return x[(scores.amax(1) > 0).nonzero()[:, 0]]


class Products(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts products of matrices that hold numbers."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.addmm.default and not args[1].is_meta
        return func(*args, **(kwargs or {}))


def products(model: nn.Module, x: Tensor) -> int:
    with Products() as counted:
        fold(model, x)
    return counted.count


def test_what_a_part_gave_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that asks for numbers runs once to find that out, and once on other numbers."""
    model = live(
        net(lambda self, x: self.picks(self.norm(x)), picks=Picks(), norm=nn.BatchNorm1d(3))
    )
    x = torch.randn(6, 3, dtype=torch.float64)
    assert products(model, x) == 2
    monkeypatch.setattr(recording.Answers, "find", lambda *given: None)  # the control
    assert products(model, x) == 3


def test_a_part_that_changes_what_it_is_given_runs_again() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.norm(x) + len(self.picks(x.mul_(2)))

    class Halves(Picks):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.mul_(0.5))

    model = live(net(forward, picks=Halves(), norm=nn.BatchNorm1d(3)))
    x = torch.randn(6, 3, dtype=torch.float64)
    assert products(model, x.clone()) == 3
    assert gap(model, fold(model, x.clone()), x) <= 1e-9


def test_what_holds_nothing_but_parts_that_ask_is_not_run_on_other_numbers() -> None:
    model = live(net(lambda self, x: self.picks(x.sigmoid() * 2 * 3), picks=Picks()))
    x = torch.randn(6, 3, dtype=torch.float64)
    assert products(model, x) == 1
    assert gap(model, fold(model, x), x) <= 1e-9


def test_a_padding_of_some_sizes_alone_is_kept_before_anything_is_built_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Same(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            missing = max((-(-x.shape[-1] // 2) - 1) * 2 + 3 - x.shape[-1], 0)
            if missing > 0:
                x = F.pad(x, [missing // 2, missing - missing // 2] * 2)
            return F.conv2d(x, self.weight, self.bias, self.stride)

    rounds: list[Any] = []
    captured = driver.capture_all
    monkeypatch.setattr(
        driver, "capture_all", lambda *a, **k: rounds.append(a) or captured(*a, **k)
    )
    model = live(
        net(
            lambda self, x: self.far(self.norm(self.same(x))),
            same=Same(3, 4, 3, 2),
            norm=nn.BatchNorm2d(4),
            far=nn.Conv2d(4, 4, 3),
        )
    )
    folded = fold(model)
    assert all(gap(model, folded, images(2, 3, side, side)) <= 1e-9 for side in (9, 12, 13))
    assert len(rounds) == 1


def test_what_code_says_of_types_asks_no_size(runs: list[Any]) -> None:
    """The text of a size decides unseen; `str` in an annotation is none."""

    def bare(self: Any, x: Tensor):
        return {"y": plain(self, x).view(x.shape[0], -1)}

    def said(self: Any, x: Tensor) -> dict[str, Tensor]:
        return {"y": plain(self, x).view(x.shape[0], -1)}

    def asked(self: Any, x: Tensor) -> Tensor:
        return plain(self, x).view(x.shape[0], -1) if len(str(x.shape)) else x

    counts = []
    for forward in (bare, said, asked):
        runs.clear()
        fold(live(block(forward)))
        counts.append(len(runs))
    assert counts[0] == counts[1] < counts[2]


def test_answers_that_a_run_has_given_are_not_given_again(runs: list[Any]) -> None:
    """Where code wants one size, always yes is what was recorded; always no is refused at once."""

    def wants(self: Any, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != (3, 12, 12):
            raise ValueError("maps of another size")
        return self.norm(self.conv(x))

    fold(live(nn.Sequential(block(wants), block(wants))))
    whole = [recorder for recorder in runs if recorder.is_whole and recorder.flip is not None]
    assert whole == []


class Head(nn.Module):
    """A convolution, a linear layer and its norm of rows; `folds_axes` takes (N, L, C, H, W)."""

    def __init__(self, *, folds_axes: bool) -> None:
        super().__init__()
        self.conv, self.pool = conv(3, 4), nn.AdaptiveAvgPool2d(1)
        self.linear, self.norm = nn.Linear(4, 5), nn.BatchNorm1d(5)
        self.folds_axes = folds_axes

    def forward(self, x: Tensor) -> Tensor:
        if self.folds_axes and x.ndim == 5:
            y = self.pool(self.conv(x.flatten(0, 1))).flatten(1).unflatten(0, (-1, x.shape[1]))
        else:
            y = self.pool(self.conv(x)).flatten(1)
        return self.norm(self.linear(y))


@pytest.mark.parametrize(("folds_axes", "left"), [(False, 0), (True, 1)])
def test_an_input_of_more_axes_is_tried_where_one_may_be_taken(
    folds_axes: bool, left: int, runs: list[Any]
) -> None:
    folded = fold(live(Head(folds_axes=folds_axes)))
    others = [one for one in runs if not one.counts_only][1:]
    assert bool(others) == folds_axes
    assert norms(folded) == left
