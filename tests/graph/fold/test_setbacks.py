"""One step that fails is one entry of the account; the rest folds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from helpers.traps import conv, gap, images, live, net, norms, sound
from refold import plan
from refold.errors import RefusedError
from refold.graph.fold import passes
from refold.graph.fold.emit import Emitter
from refold.graph.fold.fold_pass import FoldPass
from refold.graph.fold.merges import parallel_paths as siblings
from refold.graph.fold.norms import shared as fanout
from refold.graph.fold.region import Region
from refold.graph.fold.setbacks import LeftAlone, Step
from refold.graph.surgery.editor import Editor
from refold.residuals import removal

Norm = nn.BatchNorm2d


def pairs() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs in (3, 4, 4):
        layers += [conv(inputs, 4), Norm(4), nn.ReLU()]
    return live(nn.Sequential(*layers))


def test_a_norm_called_twice_folds_where_it_has_no_parameters() -> None:
    def forward(self: Any, x: Any) -> Any:
        y = self.m(x * self.g)
        self.m(x)
        return y, self.n(self.c(x))

    parts = {"m": Norm(3, affine=False), "c": conv(), "n": Norm(4)}
    done = sound(net(forward, g=nn.Parameter(torch.randn(1)), **parts))
    assert len(done.steps) == 2
    [left] = done.refusals
    assert left.reason.startswith("nobody reads")  # its second call


def test_a_norm_called_twice_after_a_convolution() -> None:
    def forward(self: Any, x: Any) -> Any:
        return self.m(self.c(x)), self.m(x.abs())

    done = sound(net(forward, m=Norm(3, affine=False), c=conv(3, 3)))
    assert len(done.steps) == 1


@pytest.mark.parametrize("error", [RefusedError("it does not fit"), KeyError("key"), StopIteration])
def test_a_step_that_fails_while_it_writes_costs_only_itself(
    error: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Emitter.write

    def fails(self: Emitter) -> Any:
        done = write(self)
        if "3" in str(self.region.nodes[0].target):
            raise error
        return done

    monkeypatch.setattr(Emitter, "write", fails)
    model = pairs()
    done = plan(model, images())
    assert gap(model, done.apply(), images()) <= 1e-9
    assert [step.where for step in done.steps] == ["0", "6"]
    [kept] = done.refusals
    assert kept.where == "3 + 4"
    assert ("does not fit" if isinstance(error, RefusedError) else "report it") in kept.reason
    assert norms(done.apply()) == 1


def test_a_rule_that_fails_costs_only_its_expression(monkeypatch: pytest.MonkeyPatch) -> None:
    fold_chain = FoldPass.fold_chain

    def fails(self: FoldPass, region: Region) -> bool:
        if "3" in str(region.nodes[0].target):
            raise ZeroDivisionError
        return fold_chain(self, region)

    monkeypatch.setattr(FoldPass, "fold_chain", fails)
    model = pairs()
    done = plan(model, images())
    assert len(done.steps) == 2
    assert [kept.where for kept in done.refusals] == ["3 + 4"]
    assert gap(model, done.apply(), images()) <= 1e-9


def test_a_context_manager_in_the_root_keeps_only_what_needs_new_code() -> None:
    def forward(self: Any, x: Any) -> Any:
        with torch.no_grad():
            y = self.n(self.a(x))
        return self.b(y) + self.c(y), self.block(x)

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = conv(), conv(kernel=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.left(x) + self.right(x)

    parts = {"a": conv(), "n": Norm(4), "b": conv(4), "c": conv(4, kernel=1)}
    done = sound(net(forward, block=Branches(), **parts), reason="context manager")
    assert {step.where for step in done.steps} == {"a", "block.reparam_conv"}
    assert [kept.where for kept in done.refusals] == ["b + c + add"]


def test_code_that_cannot_be_written_for_an_unknown_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commit, tries = Editor.commit, list[int]()

    def fails(self: Editor, target: nn.Module) -> nn.Module:
        tries.append(1)
        if len(tries) == 1:
            raise OSError("no")
        return commit(self, target)

    monkeypatch.setattr(Editor, "commit", fails)
    model = pairs()
    done = plan(model, images())
    assert not done.steps
    assert len(done.refusals) == 3
    assert gap(model, done.apply(), images()) == 0


@pytest.mark.parametrize("name", ["unify_layouts", "survey"])
def test_a_capture_that_cannot_be_worked_on_stays(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise IndexError

    monkeypatch.setattr(passes, name, fails)
    model = pairs()
    done = plan(model, images())
    assert not done.steps
    assert [kept.where for kept in done.refusals] == ["Sequential"]
    assert gap(model, done.apply(), images()) == 0


def test_a_push_that_fails_leaves_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise IndexError

    def forward(self: Any, x: Any) -> Any:
        y = self.b(x)
        return self.c(y), self.d(y)

    monkeypatch.setattr(fanout, "_plan", fails)
    done = sound(net(forward, b=Norm(3), c=conv(3, 4, 1), d=conv(3, 4, 1)), reason="report it")
    assert [kept.where for kept in done.refusals] == ["b"]


def test_siblings_that_fail_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, x: Any) -> Any:
        return self.c(self.a(x).relu()) + self.d(self.b(x).relu())

    def model() -> nn.Module:
        made = {"a": conv(3, 4, 1), "b": conv(3, 4, 1), "c": conv(4, 4), "d": conv(4, 4)}
        return net(forward, **made)

    assert sound(model()).steps

    def fails(*_: Any) -> None:
        raise IndexError

    monkeypatch.setattr(siblings, "_hand_over", fails)
    done = sound(model(), reason="report it")
    assert not done.steps


def test_setbacks_come_to_an_end() -> None:
    left = LeftAlone()
    for number in range(100):
        if left.whole is not None:
            break
        left.setback([Step(frozenset({str(number)}))], RefusedError("again"))
    assert left.whole == "again"


def test_a_residual_whose_code_cannot_be_written_stays() -> None:
    def forward(self: Any, x: Any) -> Any:
        with torch.no_grad():
            y = self.a(x)
        return (self.d(self.c(y).relu()) + y).relu()

    model = live(net(forward, a=conv(), c=conv(4), d=conv(4)))
    done = removal(model, images())
    assert not done.steps
    assert any("context manager" in kept.reason for kept in done.kept)
    assert gap(model, done.model, images()) <= 1e-9
