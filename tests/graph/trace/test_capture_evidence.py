"""What is captured by itself is called as its capture assumes, or is not captured as a whole."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.traps import conv, images, live
from refold import plan

pytestmark = pytest.mark.slow

X = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Norm = nn.BatchNorm2d


class Optional(nn.Module):
    """A block whose optional arguments change what may be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(3, 3), Norm(3)
        self.tail = nn.Sequential(conv(3, 3), Norm(3))

    def forward(self, x: Tensor, skip: Tensor | None = None, scale: float = 1.0) -> Tensor:
        y = self.conv(x) * scale
        if skip is not None:
            y = F.relu(y) + skip
        return x + self.tail(self.norm(y))


class Outer(nn.Module):
    """Calls a block in the ways it is told."""

    def __init__(self, run) -> None:
        super().__init__()
        self.block, self.other = Optional(), Optional()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def check(model: nn.Module) -> nn.Module:
    """Fold a model with and without an example and compare; return the last result."""
    folded = model = live(model.double().eval())
    oracle = copy.deepcopy(model)
    for example in (X, None):
        folded = plan(model, example).apply()
        for x in (X, X[:1, :, 1:].contiguous()):
            wanted, got = oracle(x), folded(x)
            assert (wanted - got).abs().max() <= 1e-9 * wanted.abs().max()
    return folded


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, Norm) for module in model.modules())


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: m.block(x, x) + m.block(x, skip=x, scale=0.5),
        lambda m, x: m.block(x) - m.block(x, scale=2.0),
        lambda m, x: m.block(x, None, 0.5) * m.block(x, x),
        lambda m, x: m.block(m.block(x), x),
    ],
)
def test_arguments_that_are_given(run) -> None:
    folded = check(Outer(run))
    assert norms(folded.block) == 1  # the tail is called as it stands


def test_the_plan_names_the_argument() -> None:
    model = live(Outer(lambda m, x: m.block(x, x) + m.block(x)).double().eval())
    [reason] = [kept.reason for kept in plan(model, X).refusals if kept.where == "block"]
    assert reason == "its optional argument skip may be given"


def test_defaults_that_are_given() -> None:
    folded = check(Outer(lambda m, x: m.block(x, None) + m.block(x, scale=1.0)))
    assert norms(folded.block) == 0


class Unseen(nn.Module):
    """A model that no trace follows, and that calls its block in two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Optional()

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        return self.block(x) + self.block(x, x)


class UnseenPlain(nn.Module):
    """A model that no trace follows, and that leaves optional arguments out."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Optional()

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 1e9 else self.block(x)


def test_calls_that_no_trace_saw() -> None:
    assert norms(check(Unseen()).block) == 1
    assert norms(check(UnseenPlain()).block) == 0


class Reaches(nn.Module):
    """Runs a Sequential, and later one of its layers alone, where a trace no longer follows."""

    def __init__(self) -> None:
        super().__init__()
        self.seq = nn.Sequential(Norm(3), Norm(3))
        self.inner = Optional()


class Indexed(Reaches):
    def forward(self, x: Tensor) -> Tensor:
        y = self.seq(x)
        return self.seq[0](y) if y.sum() < 1e9 else y


class Looped(Reaches):
    def forward(self, x: Tensor) -> Tensor:
        y = self.seq(x)
        if y.sum() < 1e9:
            for part in self.seq.children():
                y = part(y) + 1
        return y


class Named(Reaches):
    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return self.inner.norm(y) if y.sum() < 1e9 else y


class Helped(Reaches):
    def forward(self, x: Tensor) -> Tensor:
        y = self.seq(x)
        return self.finish(y) if y.sum() < 1e9 else y

    def finish(self, y: Tensor) -> Tensor:
        return self.seq[1](y)


@pytest.mark.parametrize("kind", [Indexed, Looped, Named, Helped])
def test_parts_that_also_run_alone(kind) -> None:
    check(kind())


def test_code_without_source() -> None:
    space = {"Reaches": Reaches, "Tensor": Tensor}
    body = "y = self.seq(x)\n        return self.seq[0](y) if y.sum() < 1e9 else y"
    exec(f"class Bare(Reaches):\n    def forward(self, x):\n        {body}\n", space)
    check(space["Bare"]())


class Listed(Reaches):
    """Its Sequential is only called; a method that forward does not use reads into it."""

    def reset(self) -> None:
        nn.init.ones_(self.seq[0].weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.seq(x)
        return y if y.sum() < 1e9 else x


def test_methods_that_do_not_run_say_nothing() -> None:
    assert norms(check(Listed()).seq) == 0


class Padded(nn.Module):
    """A norm behind a convolution that pads as its code finds right: by nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(3, 3), Norm(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(F.pad(x, (0, 0, 0, 0))))


class Asked(nn.Module):
    """A value between two blocks that may be asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Padded(), Padded()

    def forward(self, x: Tensor, wanted: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        y = self.first(x)
        z = self.second(y)
        return (z, y) if wanted else z


def test_a_call_that_changes_nothing_behind_a_fold_is_no_part_of_it() -> None:
    model = live(Asked().double().eval())
    folded = plan(model, X).apply()
    assert norms(folded) == 0
    for wanted in (False, True):
        for one, two in zip(folded(X, wanted), model(X, wanted), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


class Nested(nn.Module):
    """Two blocks, held by the network as well, run in turn by a part of their own."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class Counting(nn.Module):
    """Its own code cannot be followed, as it counts; what it runs stands under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Padded(), Padded()
        self.both, self.seen = Nested(self.one, self.two), 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.both(x) * self.seen


def test_a_part_under_two_names_runs_once() -> None:
    model = live(Counting().double().eval())
    made = plan(model, X)
    folded = made.apply()
    assert norms(folded) == 0
    assert not [kept for kept in made.kept if "called" in kept.reason]
    assert folded.both.first is folded.one
    for _ in range(3):
        torch.testing.assert_close(folded(X), model(X), rtol=1e-9, atol=1e-9)


class Pointwise(Padded):
    """A block that merges with its like."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Again(nn.Module):
    """Its own code, which counts, runs a block of a part by itself."""

    def __init__(self, is_first: bool, get) -> None:
        super().__init__()
        block = Pointwise()
        if is_first:
            self.one = block
        self.both, self.seen, self.get = Nested(block, Pointwise()), 0, get
        if not is_first:
            self.one = block

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.both(x) * self.seen + self.get(self)(x)


class AgainByName(Again):
    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.both(x) * self.seen + self.one(x)


class AgainByLayer(Again):
    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.both(x) * self.seen + self.one.norm(x)


@pytest.mark.parametrize("kind", [Again, AgainByName, AgainByLayer])
@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("example", [X, None])
def test_a_part_under_two_names_that_unseen_code_runs_by_itself(kind, is_first, example) -> None:
    model = live(kind(is_first, lambda net: net.one).double().eval())
    folded = plan(model, example).apply()
    for _ in range(3):
        torch.testing.assert_close(folded(X), model(X), rtol=1e-9, atol=1e-9)
    if kind is AgainByName:
        assert norms(folded) == 0


class Halves(nn.Module):
    """A map of an odd height is resized, since the code then reshapes it in pairs of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        even = -(-height // 2) * 2
        is_odd = even != height
        if is_odd:
            x = nn.functional.interpolate(x, size=(even, width), mode="bilinear")
        x = x.reshape(batch, channels, even // 2, 2, width).flip(3).reshape(batch, -1, even, width)
        if is_odd:
            x = nn.functional.interpolate(x, size=(height, width), mode="bilinear")
        return self.proj(x)


@pytest.mark.parametrize("height", [9, 8])
def test_a_step_beside_a_call_that_may_be_left_out_is_made(height: int) -> None:
    """The call before it stays as it is; what comes after it gets the value that it got."""
    body = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(), nn.Identity()]
    model = live(nn.Sequential(*body, Halves()))
    folded = plan(model, images(2, 3, height, 7)).apply()
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    for size in (7, 8, 9, 12):
        x = images(1, 3, size, 6)
        torch.testing.assert_close(folded(x), model(x), rtol=1e-9, atol=1e-12)
