"""A plain argument has other values than the recorded one: a fold is exact for them, or refused.

The oracle is the model itself, in float64. The control folds with no value of an argument known,
and must come out wrong.
"""

from __future__ import annotations

import contextlib
import copy
import enum
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.traps import EXACT, WRONG, conv, images, live
from refold import plan, reparameterize
from refold.errors import RefusedError
from refold.graph.trace.other_runs.optional import OtherArguments

X = images(2, 3, 6, 5)


class Stage(enum.Enum):
    WHOLE = 1
    RAW = 2


class Two(nn.Module):
    """A layer with two norms: which follows is a matter of an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.other = conv(3, 3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def usual(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def raw(self, x: Tensor) -> Tensor:
        return self.other(self.conv(x))


class Text(Two):
    def forward(self, x: Tensor, stage: str = "whole") -> Tensor:
        return self.usual(x) if stage == "whole" else self.other(self.conv(x))


class Member(Two):
    def forward(self, x: Tensor, stage: Stage = Stage.WHOLE) -> Tensor:
        return self.usual(x) if stage is Stage.WHOLE else self.other(self.conv(x))


class Number(Two):
    def forward(self, x: Tensor, depth: int = 1) -> Tensor:
        return self.usual(x) if depth < 3 else self.other(self.conv(x))


class Table(Two):
    def forward(self, x: Tensor, options: dict[str, bool] | None = None) -> Tensor:
        if options and options.get("raw"):
            return self.other(self.conv(x))
        return self.usual(x)


class Names(Two):
    def forward(self, x: Tensor, wanted: list[str] | None = None) -> Tensor:
        return self.raw(x) if wanted and "raw" in wanted else self.norm(self.conv(x))


class Required(Two):
    def forward(self, x: Tensor, stage: str) -> Tensor:
        return self.usual(x) if stage == "whole" else self.other(self.conv(x))


class HandedOn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList([Text()])

    def go(self, x: Tensor, how: str) -> Tensor:
        return self.inner[0](x, stage=how)

    def forward(self, x: Tensor, stage: str = "whole") -> Tensor:
        return self.go(x, stage)


class PartOfChild(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential()
        self.block.add_module("conv", conv(3, 3))
        self.block.add_module("norm", nn.BatchNorm2d(3))

    def forward(self, x: Tensor, stage: str = "whole") -> Tensor:
        return self.block(x) if stage == "whole" else self.block.conv(x)


CASES: dict[str, tuple[type[nn.Module], tuple[Any, ...], Any]] = {
    "text": (Text, (), "raw"),
    "member of an enum": (Member, (), Stage.RAW),
    "number": (Number, (), 5),
    "table": (Table, (), {"raw": True}),
    "names": (Names, (), ["raw"]),
    "required": (Required, ("whole",), "raw"),
    "handed on": (HandedOn, (), "raw"),
    "part of a child": (PartOfChild, (), "raw"),
}


def error(one: nn.Module, other: nn.Module, *args: Any) -> float:
    with torch.no_grad():
        wanted, got = one(*args), other(*args)
    return float((wanted - got).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("case", CASES)
def test_another_value_is_exact_or_refused(case: str) -> None:
    make, given, value = CASES[case]
    model = live(make())
    folded = reparameterize(copy.deepcopy(model), (X, *given))
    assert error(model, folded, X, *given) <= EXACT
    with contextlib.suppress(RefusedError):  # it says which value the fold was made for
        assert error(model, folded, X, value) <= EXACT


def test_the_control_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OtherArguments, "runs", [])
    for case in ("text", "number", "table"):
        make, given, value = CASES[case]
        model = live(make())
        folded = reparameterize(copy.deepcopy(model), (X, *given))
        assert error(model, folded, X, value) > WRONG


def test_a_reason_names_the_argument() -> None:
    [kept] = plan(live(Required()), (X, "whole")).kept
    assert kept.reason == "its argument stage may have another value"


class AtTheEnd(Two):
    """What the argument decides comes behind what folds."""

    def forward(self, x: Tensor, how: str = "mean", size: tuple[int, int] | None = None) -> Tensor:
        y = self.norm(self.conv(x))
        if size is not None:
            y = nn.functional.interpolate(y, size=size)
        return y.mean((2, 3)) if how == "mean" else y.amax((2, 3))


def test_what_no_argument_touches_folds() -> None:
    model = live(AtTheEnd())
    folded = reparameterize(model, X)
    assert isinstance(folded.norm, nn.Identity)
    for more in ({}, {"how": "max"}, {"size": (3, 4)}):
        wanted, got = model(X, **more), folded(X, **more)
        assert (wanted - got).abs().max() <= EXACT * wanted.abs().max()


class BySize(Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.usual(x) if x.shape[-1] < 100 else self.other(self.conv(x))


def test_a_size_may_decide_which_method_runs() -> None:
    model = live(BySize())
    folded = reparameterize(copy.deepcopy(model), X)
    assert error(model, folded, images(1, 3, 4, 120)) <= EXACT


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(3, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def loss(self, x: Tensor) -> Tensor:
        return self(x).square().mean()


class Modes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = Head()

    def forward(self, x: Tensor, mode: str = "tensor") -> Tensor:
        return self.head.loss(x) if mode == "loss" else self.head(x)


def test_a_part_that_another_mode_calls_elsewhere_folds() -> None:
    model = live(Modes())
    folded = reparameterize(copy.deepcopy(model), X)
    assert isinstance(folded.head.norm, nn.Identity)
    for mode in ("tensor", "loss"):
        assert error(model, folded, X, mode) <= EXACT


class Flags(Two):
    """Several arguments have the same default: a value of one is no value of another."""

    def forward(
        self, x: Tensor, bends: bool = False, raw: bool = False, other: Tensor | None = None,
        more: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        y = self.conv(x)
        if raw or more is not None:
            return self.other(y)
        y = self.norm(y)
        y = y.relu() if bends else y
        return y if other is None else y + other


class NamesAlone(Two):
    def forward(self, x: Tensor, **given: Tensor) -> Tensor:
        y = self.conv(x)
        if "raw" in given:
            return self.other(y)
        y = self.norm(y)
        return y.relu() if "bends" in given else y


@pytest.mark.parametrize("make", [Flags, NamesAlone])
def test_arguments_of_one_value_are_told_apart(make: type[nn.Module]) -> None:
    model = live(make())
    folded = reparameterize(copy.deepcopy(model), X)
    calls: list[dict[str, Any]] = [{"bends": True}, {"raw": True}]
    for more in [{}, *calls, {"other": X}, {"more": X}] if make is Flags else [{}, *calls]:
        with contextlib.suppress(RefusedError), torch.no_grad():
            wanted, got = model(X, **more), folded(X, **more)
            assert (wanted - got).abs().max() <= EXACT * wanted.abs().max(), more


class Attention(nn.Module):
    """As timm's blocks are called: one by one where a mask is given, as one chain where not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 3), nn.BatchNorm2d(3))
        self.blocks = nn.Sequential(Mixer(), Mixer())

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        if mask is None and not causal:
            return self.blocks(x)
        for block in self.blocks:
            x = block(x, mask, causal)
        return x


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(3), nn.Linear(3, 9)

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        q, k, v = self.mix(self.norm(x)).chunk(3, -1)
        return x + nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal
        )


def test_a_mask_of_positions_hinders_no_fold() -> None:
    model = live(Attention())
    folded = reparameterize(copy.deepcopy(model), X)
    assert isinstance(folded.stem[1], nn.Identity)
    assert all(block.norm.weight is None for block in folded.blocks)
    positions = X.shape[2] * X.shape[3]
    mask = torch.randn(positions, positions, dtype=X.dtype)
    for more in ({}, {"mask": mask}, {"causal": True}):
        wanted, got = model(X, **more), folded(X, **more)
        assert (wanted - got).abs().max() <= EXACT * wanted.abs().max(), more
