"""A residual that is removed wrongly is put back, whatever fault of ours made it so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from refold.errors import RefusedError
from refold.pruning import dead_channels, dropping
from refold.residuals import passes, removal, remove_residuals

WIDTHS = (4, 5, 6)


class Block(nn.Module):
    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(channels, inner, 3, padding=1), nn.Conv2d(inner, channels, 1)
        self.norm = nn.BatchNorm2d(inner)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.two(torch.relu(self.norm(self.one(x)))))


def net(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """Return three residuals of known inner widths, live, and an example."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.ReLU(), *(Block(3, inner) for inner in WIDTHS))
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            part.weight.data.normal_()
    return model.to(dtype).eval(), torch.randn(2, 3, 6, 5, dtype=dtype)


def off(model: nn.Module, other: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        wanted, got = model(x), other(x)
    return float((wanted - got).abs().max() / wanted.abs().max())


def plant(monkeypatch: pytest.MonkeyPatch, *inner: int) -> None:
    """Let what carries the shortcut around these widths come out a hundredth too strong."""
    plan = passes.Planner.plan

    def planted(planner: passes.Planner) -> list[passes.Change]:
        changes = plan(planner)
        made = [change.module for change in changes if isinstance(change.module, nn.Conv2d)]
        if any(f"Conv2d({3}, {3 + width}," in repr(made[0]) for width in inner):
            made[-1].weight.data *= 1.01
        return changes

    monkeypatch.setattr(passes.Planner, "plan", planted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_residual_that_is_removed_wrongly_is_put_back(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    model, x = net(dtype)
    assert len(removal(model, x).steps) == 3
    plant(monkeypatch, 5)
    done = removal(model, x)
    assert len(done.steps) == 2
    [kept] = done.kept
    assert kept.where == "2"
    assert "another answer" in kept.reason
    assert "undone" in kept.reason
    assert off(model, done.model, x) < (1e-9 if dtype == torch.float64 else 1e-4)


def test_where_all_are_wrong_all_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = net()
    plant(monkeypatch, *WIDTHS)
    done = removal(model, x)
    assert not done.steps
    assert len(done.kept) == 3
    assert off(model, done.model, x) < 1e-9
    with pytest.raises(RefusedError, match="undone"):
        remove_residuals(model, x, strict=True)


def test_dead_channels_that_are_dropped_wrongly_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Sequential(), torch.randn(2, 3, 6, 5).double()
    for width in WIDTHS:
        model.append(nn.Conv2d(3, width, 3, padding=1)).append(nn.ReLU())
        model.append(nn.Conv2d(width, 3, 1)).append(nn.Tanh())
    model.double().eval()
    for at in (0, 4, 8):
        model[at].weight.data[1], model[at].bias.data[1] = 0, 0
    columns = dead_channels._columns
    assert len(dropping(model, x, round_to=1).steps) == 3

    def planted(op: dead_channels.Conv, *rest: object) -> dead_channels.Conv:
        made = columns(op, *rest)
        if op.in_channels == 5:
            made.weight.mul_(1.01)
        return made

    monkeypatch.setattr(dead_channels, "_columns", planted)
    done = dropping(model, x, round_to=1)
    assert len(done.steps) == 2
    assert any(kept.where == "4" and "undone" in kept.reason for kept in done.kept)
    assert off(model, done.model, x) < 1e-9
