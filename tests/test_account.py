"""Every verb that changes a network gives one kind of account; `strict` means one thing."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import refold
from refold.account import Account
from refold.bench import BenchmarkRow, BenchmarkTable, Machine, Spread
from refold.branches import expand_plan
from refold.checkpoint import LoadReport
from refold.equivalence import Proof, prove
from refold.errors import RefusedError
from refold.inputs import required
from refold.onnx_files import Trial
from refold.pruning import dropping, pruning
from refold.residuals import removal
from refold.tuning import Choices, Tuning
from refold.tuning.outcome import Trial as TuningTrial


class Net(nn.Module):
    """Two residuals, of which one has to stay, and a norm that cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.b, self.c = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.d = nn.Conv2d(4, 4, 1, bias=False)
        self.late = nn.BatchNorm2d(4)
        with torch.no_grad():
            for norm in (self.n, self.late):
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)
                norm.weight.normal_()
                norm.bias.normal_()
            self.b.weight[1] = 0  # a dead channel
            self.b.bias[1] = 0

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.b(self.n(self.a(x)).relu())
        x = x + self.d(nn.functional.silu(self.c(x)))
        return self.late(x.sigmoid())


X = torch.randn(1, 4, 6, 6)
ACCOUNTS: dict[str, tuple[str, Callable[[nn.Module], Account]]] = {
    "plan": ("folded", lambda net: refold.plan(net, X)),
    "expand": ("expanded", lambda net: expand_plan(net, "acb")),
    "removal": ("removed", lambda net: removal(net, X)),
    "pruning": (
        "narrowed",
        lambda net: pruning(net, X, ratio=0.3, remove_residuals=True, round_to=1),
    ),
    "dropping": ("narrowed", lambda net: dropping(net, X)),
}


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.mark.parametrize("verb", ACCOUNTS)
def test_every_account_has_the_same_parts(verb: str) -> None:
    done, make = ACCOUNTS[verb]
    account = make(net())
    assert isinstance(account, Account)
    assert isinstance(account.model, nn.Module)
    assert all(step.rule and step.detail for step in account.steps)
    assert all(item.reason for item in account.kept)
    data = json.loads(json.dumps(account.to_dict()))
    more = {"plan": ["unrun", "made_up"], "pruning": ["silenced", "gone", "cost_plain"]}
    assert list(data) == ["steps", "kept", "cost_before", "cost_after", *more.get(verb, [])]
    assert [item["where"] for item in data["kept"]] == [item.where for item in account.kept]
    head = f"{len(account.steps)} {done}, {len(account.kept)} kept; parameters "
    lines = str(account).split("\n")
    assert account.summary().startswith(head)
    assert lines[-1] == account.summary()
    rows = len(account.steps) + len(account.kept)
    assert len(lines) == (rows + 3 if rows else 1)


@pytest.mark.parametrize("verb", ["plan", "expand", "removal", "pruning"])
def test_the_network_gives_each_account_a_step_and_something_kept(verb: str) -> None:
    account = ACCOUNTS[verb][1](net())
    assert account.steps
    assert account.kept


STRICT = (refold.plan, refold.remove_residuals)


@pytest.mark.parametrize("verb", STRICT)
def test_strict_raises_for_whatever_is_kept(verb: Callable) -> None:
    verb(net(), X)  # by default it does not
    with pytest.raises(RefusedError, match="kept, which strict=True forbids:\n  "):
        verb(net(), X, strict=True)
    plain = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()).eval()
    verb(plain, X, strict=True)


def test_strict_has_one_default() -> None:
    verbs = [getattr(refold, name) for name in dir(refold) if not name.startswith("_")]
    found = {
        verb.__name__: inspect.signature(verb).parameters["strict"].default
        for verb in verbs
        if inspect.isfunction(verb) and "strict" in inspect.signature(verb).parameters
    }
    assert found == dict.fromkeys(("plan", "remove_residuals"), False)


def test_reparameterize_and_plan_agree_on_what_they_share() -> None:
    both = [inspect.signature(verb).parameters for verb in (refold.reparameterize, refold.plan)]
    for name in ("model", "example_inputs", "allow_growth"):
        assert both[0][name] == both[1][name].replace()


def loaded(folder: Path) -> LoadReport:
    torch.save({"state_dict": nn.Linear(2, 3).state_dict()}, folder / "linear.pth")
    return refold.load_checkpoint(nn.Linear(2, 3), folder / "linear.pth")


def differing(folder: Path) -> refold.Equivalence:
    return refold.verify(nn.Linear(2, 3).eval(), nn.Linear(2, 4).eval(), torch.ones(1, 2))


def row(folder: Path) -> BenchmarkRow:
    return BenchmarkRow("eager", "b", Spread(1, 2, 3), 1.0, None, Spread(1, 2, 3), (0.9, 1.1))


def skipped(folder: Path) -> BenchmarkRow:
    return BenchmarkRow("openvino", "b", skipped="it is not installed")


def proved(folder: Path) -> Proof:
    model = net()
    return prove(model, refold.reparameterize(model, X), required(model, X), refold.reparameterize)


def measured(folder: Path) -> BenchmarkTable:
    machine = Machine("a processor", "a system", 1, "cpu", "float32", {"torch": "2"})
    return BenchmarkTable((row(folder), skipped(folder)), ((1, 3, 8, 8),), 3, machine)


def tuned(folder: Path) -> Tuning:
    tried = TuningTrial("no residuals", None, adopted=False, reason="there are none")
    return Tuning(Choices(), "eager", "a net", ((1, 3, 8, 8),), "a machine", (tried,))


def onnx_trial(folder: Path) -> Trial:
    return Trial({"x": [1]}, float("inf"), 1e-6, "its output is another")


@pytest.mark.parametrize(
    "make", [loaded, differing, row, skipped, proved, measured, tuned, onnx_trial]
)
def test_every_result_is_a_text_and_plain_data(make: Callable, tmp_path: Path) -> None:
    """JSON has no infinity: what reads it would stumble."""
    result = make(tmp_path)
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))
    text = str(result)
    assert text
    if make is not onnx_trial:
        assert not text.startswith(f"{type(result).__name__}(")
