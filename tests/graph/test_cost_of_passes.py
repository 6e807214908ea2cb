"""What a pass or a rule costs on a network that has nothing for it: a small part of the fold.

Counted in calls of Python, which are the same in every run, and not timed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from cProfile import Profile
from functools import wraps
from types import FunctionType
from typing import Any

import pytest
import torch

import refold
from refold.graph.fold import passes
from refold.graph.fold.fold_pass import FoldPass
from refold.graph.fold.region import Regions
from refold.graph.lift.lifter import Lifter
from refold.rules.rule import Rule

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.slow

MOST = 0.05
SHARED = "what a call means, which is told once and remembered, whoever asks first"
NETS = (
    "resnet18",
    "mobileone_s0",
    "repvit_m0_9",
    "vit_tiny_patch16_224",
    "convnext_atto",
    "mobilenetv3_large_100",
)
PASSES = [
    name
    for name, value in vars(passes).items()
    if isinstance(value, FunctionType) and value.__module__ != passes.__name__
]


class Meter:
    """Counts the calls below some functions, by name; what is shared is counted for nobody else."""

    def __init__(self) -> None:
        self.calls, self.done = Counter[str](), Counter[str]()
        self._open = list[Profile]()
        self._below = list[int]()

    def of(self, function: Callable[..., Any], name: str = "") -> Callable[..., Any]:
        """Return a function that counts what it calls, under a name, or that of a rule."""

        @wraps(function)
        def counting(*args: Any, **kwargs: Any) -> Any:
            if self._open:
                self._open[-1].disable()
            self._open.append(Profile(builtins=False))
            self._below.append(0)
            steps = _steps(args[0])
            result = None
            self._open[-1].enable()
            try:
                result = function(*args, **kwargs)
            finally:
                self._close(name or args[0].name)
            self.done[name or args[0].name] += _steps(args[0]) - steps if name else bool(result)
            return result

        return counting

    def _close(self, name: str) -> None:
        profile = self._open.pop()
        profile.disable()
        calls = sum(entry.callcount for entry in profile.getstats()) + self._below.pop()
        self.calls[name] += calls
        if self._open:
            self._below[-1] += calls if name != SHARED else 0
            self._open[-1].enable()


def _steps(first: object) -> int:
    return len(first.steps) if isinstance(first, FoldPass) else 0


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, float]]:
    """Return what part of a fold is spent by each pass and rule that finds nothing to do."""

    def measure(net: str) -> dict[str, float]:
        torch.manual_seed(0)
        model, x = timm.create_model(net).eval(), torch.randn(1, 3, 224, 224)
        refold.reparameterize(model, x)  # caches of classes and sources fill only now
        total = Profile(builtins=False)
        total.enable()
        try:
            refold.reparameterize(model, x)
        finally:
            total.disable()
        meter = Meter()
        with monkeypatch.context() as patch:
            for name in PASSES:
                patch.setattr(passes, name, meter.of(getattr(passes, name), name))
            patch.setattr(Rule, "__call__", meter.of(Rule.__call__))
            patch.setattr(Lifter, "lift", meter.of(Lifter.lift, SHARED))
            refold.reparameterize(model, x)
        calls = sum(entry.callcount for entry in total.getstats())
        idle = {
            name: n for name, n in meter.calls.items() if name != SHARED and not meter.done[name]
        }
        return {name: count / calls for name, count in idle.items()}

    return measure


@pytest.mark.parametrize("net", NETS)
def test_what_finds_nothing_costs_little(
    net: str, shares: Callable[[str], dict[str, float]]
) -> None:
    found = shares(net)
    assert {"merge_siblings", "pull_from_slices", "survey"} < found.keys()
    assert sum(name not in PASSES for name in found) > 5  # rules
    assert not {name: share for name, share in found.items() if share > MOST}


def test_the_bound_finds_a_pass_that_looks_for_itself(
    monkeypatch: pytest.MonkeyPatch, shares: Callable[[str], dict[str, float]]
) -> None:
    """The control: regions that are searched for once more."""

    def search(fold: FoldPass) -> bool:
        return not Regions(fold.lifter).largest()

    monkeypatch.setattr(passes, "merge_siblings", search)
    assert shares("resnet18")["merge_siblings"] > MOST
