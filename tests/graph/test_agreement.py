"""A step that makes the model answer otherwise is undone, whatever fault of ours made it.

The faults are planted: a kernel that is off by a hundredth, and a node that the editor drops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import refold
from helpers.traps import live, net
from refold.graph import fold_model
from refold.graph.agreement import Planned, misfit, shapes_of
from refold.graph.fold import emit
from refold.graph.surgery.commit import Commit
from refold.graph.trace.leaves import is_layer
from refold.graph.trace.recording import recorded_blank
from zoo.live import enliven

LIMIT = 1e-9


def chain(*widths: int) -> tuple[nn.Module, Tensor]:
    """Return convolutions of these widths, each with a live norm and a GELU, and an example."""
    layers: list[nn.Module] = []
    for before, after in zip((3, *widths), widths, strict=False):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.GELU()]
    torch.manual_seed(0)
    net, x = nn.Sequential(*layers).double().eval(), torch.randn(2, 3, 7, 6).double()
    enliven(net, (x,))
    return net, x


def norms(net: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in net.modules())


def off(net: nn.Module, other: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        wanted, got = net(x), other(x)
    return float((wanted - got).abs().max() / wanted.abs().max())


def wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer with 5 channels comes out a hundredth too strong."""
    lower = emit.lower

    def planted(*args: object, **options: object) -> nn.Module:
        made = lower(*args, **options)
        if getattr(made, "out_channels", 0) == 5:
            made.weight.data *= 1.01
        return made

    monkeypatch.setattr(emit, "lower", planted)


def dropped_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads a layer with 5 channels reads the layer's input instead."""
    lower = emit.lower

    def planted(*args: object, **options: object) -> nn.Module:
        made = lower(*args, **options)
        if getattr(made, "out_channels", 0) == 5 and made.in_channels == 5:
            made = nn.Identity()
        return made

    monkeypatch.setattr(emit, "lower", planted)


def lost_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads a layer with 6 channels reads five of them."""
    lower = emit.lower

    def planted(*args: object, **options: object) -> nn.Module:
        made = lower(*args, **options)
        if getattr(made, "out_channels", 0) == 6:
            made.weight.data, made.bias.data = made.weight.data[:5], made.bias.data[:5]
        return made

    monkeypatch.setattr(emit, "lower", planted)


FAULTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], tuple[int, ...], int]] = {
    "a wrong kernel": (wrong_kernel, (4, 5, 6, 7), 1),
    "two wrong kernels": (wrong_kernel, (5, 4, 5, 6), 2),
    "a dropped layer": (dropped_node, (4, 5, 5, 6), 1),
}


@pytest.mark.parametrize("is_given", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_undone_and_the_rest_folds(
    monkeypatch: pytest.MonkeyPatch, fault: str, is_given: bool
) -> None:
    plant, widths, wrong = FAULTS[fault]
    net, x = chain(*widths)
    plant(monkeypatch)
    assert off(net, refold.reparameterize(net, x, check=False), x) > 1e-4  # the fault is one
    done = fold_model(net, x if is_given else None, check=True)
    assert off(net, done.model, x) <= LIMIT
    assert norms(done.model) == wrong
    reasons = [kept.reason for kept in done.kept if "undone" in kept.reason]
    assert len(reasons) >= 1
    assert all("another answer on the example" in reason for reason in reasons)


def test_a_small_fault_shows_in_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of a branch that adds a thousandth: rounding alone is far smaller."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5)
            self.by = nn.Conv2d(3, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.by(x) + nn.functional.gelu(self.norm(self.conv(x))).mul(0.03)

    torch.manual_seed(0)
    net, x = Scaled().eval(), torch.randn(2, 3, 7, 6)
    enliven(net, (x,))
    wrong_kernel(monkeypatch)
    assert 1e-4 < off(net, refold.reparameterize(net, x, check=False), x) < 1e-3
    assert off(net, refold.reparameterize(net, x), x) < 1e-6


@pytest.mark.parametrize("is_given", [True, False])
def test_unchecked_a_fault_that_changes_a_shape_is_undone(
    monkeypatch: pytest.MonkeyPatch, is_given: bool
) -> None:
    net, x = chain(4, 5, 6)
    lost_channels(monkeypatch)
    done = fold_model(net, x if is_given else None, check=False)
    assert off(net, done.model, x) <= LIMIT
    assert norms(done.model) == 1


def test_without_a_fault_nothing_is_undone() -> None:
    net, x = chain(4, 5, 6)
    folded = refold.reparameterize(net, x)
    assert norms(folded) == 0
    assert off(net, folded, x) <= LIMIT


class Sharp(nn.Module):
    """Makes much of a rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(torch.tanh(self.norm(self.conv(x))) * 1e10)


@pytest.mark.parametrize("is_wrong", [False, True])
def test_a_model_that_makes_much_of_a_rounding_is_folded_all_the_same(
    monkeypatch: pytest.MonkeyPatch, is_wrong: bool
) -> None:
    torch.manual_seed(0)
    net, x = Sharp().double().eval(), torch.randn(2, 3, 7, 6).double()
    enliven(net, (x,))
    if is_wrong:
        wrong_kernel(monkeypatch)
    done = fold_model(net, x, check=True)
    assert norms(done.model) == int(is_wrong)
    assert any("undone" in kept.reason for kept in done.kept) == is_wrong
    assert off(net, done.model, x) < (LIMIT if is_wrong else 1e-3)


def forgotten_layer(net: nn.Module) -> None:
    """An activation is gone from what was written, though not from the graph."""
    at = next(name for name, part in net.named_children() if isinstance(part, nn.GELU))
    net._modules[at] = nn.Identity()


def layer_called_twice(net: nn.Module) -> None:
    """A layer of as many channels as it gives runs once more."""
    at = next(name for name, part in net.named_children() if isinstance(part, nn.GELU))
    net._modules[at] = nn.Sequential(net._modules[at], net._modules[at])


def other_layer(net: nn.Module) -> None:
    at = next(name for name, part in net.named_children() if isinstance(part, nn.GELU))
    net._modules[at] = nn.SiLU()


@pytest.mark.parametrize("spoil", [forgotten_layer, layer_called_twice, other_layer])
def test_without_a_check_the_layers_are_still_those_of_the_graph(
    spoil: Callable[[nn.Module], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shapes would not tell: the writer is spoilt, and what it writes is recorded again."""
    run = Commit.run

    def spoilt(self: Commit) -> nn.Module:
        written = run(self)
        spoil(written)
        return written

    net, x = chain(4, 5, 5)
    assert off(net, fold_model(net, x).model, x) <= LIMIT
    monkeypatch.setattr(Commit, "run", spoilt)
    outcome = fold_model(net, x)
    assert off(net, outcome.model, x) <= LIMIT
    assert not outcome.folds
    assert any("layers of class" in kept.reason for kept in outcome.kept)


class Cast(nn.Module):
    """Computes one step in float32, whatever precision its weights have, and has a residual."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x)).relu()
        return (x.relu() + self.last(y.float().softmax(1).to(self.dtype))).relu()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("verb", [refold.reparameterize, refold.remove_residuals])
def test_code_that_names_a_precision_has_no_twin_in_double(
    dtype: torch.dtype, verb: Callable[..., nn.Module]
) -> None:
    torch.manual_seed(0)
    model = live(Cast(dtype)).to(dtype)
    x = torch.randn(2, 4, 7, 6, dtype=dtype)
    folded = verb(model, x)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    wanted, found = model(x).double(), folded(x).double()
    assert (found - wanted).abs().max() <= 0.02 * wanted.abs().max()


class RowNorm(nn.LayerNorm):
    """A subclass of a torch.nn layer that is not one itself, as timm writes its LayerNorm2d."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = nn.functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class PadsOneSide(nn.Module):
    """A padding on one side, which a fold puts in the place of the convolution, before it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 2), nn.BatchNorm2d(4)
        self.gain = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x)) * self.gain
        return self.norm(self.b(nn.functional.pad(y, (0, 1, 0, 1))))


@pytest.mark.parametrize(
    "make",
    [lambda: nn.Sequential(nn.Conv2d(3, 4, 1), RowNorm(4), nn.Conv2d(4, 5, 1)), PadsOneSide],
    ids=["row norm", "one side"],
)
def test_without_a_check_a_right_fold_stays(make: Callable[[], nn.Module]) -> None:
    model, x = live(make()), torch.randn(2, 3, 6, 5, dtype=torch.float64)
    checked, unchecked = (fold_model(model, x, check=check) for check in (True, False))
    assert checked.folds
    assert unchecked.folds == checked.folds
    assert unchecked.kept == checked.kept


def test_a_generated_forward_makes_no_layer_of_a_module() -> None:
    model = live(nn.Sequential(nn.Conv2d(3, 4, 1), RowNorm(4), nn.Conv2d(4, 5, 1)))
    folded = refold.reparameterize(model, torch.randn(2, 3, 6, 5, dtype=torch.float64))
    assert type(folded.get_submodule("1")) is not RowNorm
    assert not is_layer(folded.get_submodule("1"))


def stored_answer(self: Any, x: Tensor) -> Tensor:
    y = x * 2 if self.scale.item() > 0 else x
    return self.attend(self.conv(y).flatten(2).mT, *[self.conv(x).flatten(2).mT] * 2)[0]


def test_layers_are_counted_as_a_recording_counts_them() -> None:
    """A layer within a layer belongs to it; code that asks stored tensors is recorded."""
    parts = {"conv": nn.Conv2d(3, 4, 1), "attend": nn.MultiheadAttention(4, 2, batch_first=True)}
    model = live(net(stored_answer, **parts))
    model.register_buffer("scale", torch.ones(()))
    x = (torch.randn(2, 3, 5, 4).double(),)
    recorded = recorded_blank(model, x)
    assert dict(recorded.calls) == {"conv": 2, "attend": 1}
    counted = recorded_blank(model, x, counts_only=True)
    assert counted.calls == recorded.calls
    assert shapes_of(counted.result) == shapes_of(recorded.result)
    assert misfit(model, model, x, Planned({nn.Conv2d: 2, nn.MultiheadAttention: 1})) is None
    told = misfit(model, model, x, Planned({nn.Conv2d: 1, nn.MultiheadAttention: 1}))
    assert told is not None
    assert "calls 2 layers of class Conv2d, its graph 1" in told


def gated(self: Any, x: Tensor) -> Tensor:
    y = self.norm(self.conv(x))
    if torch.sigmoid(self.scale).item() > 0:
        y = self.far(y.relu())
    return y.relu() if (self.scale * 2).item() < -5 else y


def test_numbers_that_stored_tensors_make_are_not_those_they_hold() -> None:
    """The sigmoid of -3 is above 0: counted as -3, a layer is called less often than planned."""
    parts = {"conv": nn.Conv2d(3, 4, 1), "norm": nn.BatchNorm2d(4), "far": nn.Conv2d(4, 4, 1)}
    model = live(net(gated, **parts))
    model.register_buffer("scale", torch.tensor(-3.0))
    folded = refold.reparameterize(model, torch.randn(2, 3, 5, 4).double(), check=False)
    assert norms(folded) == 0
    x = torch.randn(2, 3, 5, 4).double()
    assert off(model, folded, x) <= LIMIT
