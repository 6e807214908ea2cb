"""Remove residual connections: the same function as a chain of plain layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from refold.errors import RefusedError
from refold.graph import Fold, Kept, rewrite
from refold.residuals.passes import ResidualPass
from refold.workload import Rebuilt


@dataclass(frozen=True, eq=False)
class Removal(Rebuilt):
    """A network without residuals, and what that took.

    Args:
        model: the network.
        folded: the network with its residuals, its norms folded.
        example_inputs: what the costs are counted for.
        removed: the sums that are gone.
        kept: the sums that stay, each with the reason.
    """

    removed: tuple[Fold, ...]
    kept: tuple[Kept, ...]

    def summary(self) -> str:
        """Return how many residuals are gone and what it costs, as one line."""
        before, after = self.cost_before, self.cost_after
        text = f"{len(self.removed)} residuals removed, {len(self.kept)} kept; "
        text += f"parameters {before.parameters:,} -> {after.parameters:,}"
        if before.macs is None or after.macs is None:
            return text
        return f"{text}; multiply-adds {before.macs:,} -> {after.macs:,}"


def remove_residuals(model: nn.Module, example_inputs: Any, *, strict: bool = True) -> nn.Module:
    """Return the same function without residual additions: norms folded, shortcuts carried along.

    The convolutions of a branch get extra channels that hand its input on, and the last one adds
    it. This needs more parameters and multiply-adds than the residual did, and usually costs speed;
    it is for devices and pruners that want a plain chain.

    Args:
        model: any module in eval mode; it stays as it is.
        example_inputs: a tensor or a tuple of tensors that the model accepts.
        strict: raise when any sum of two values has to stay; otherwise it stays.

    Raises:
        RefusedError: when the model is in training mode; with `strict`, when a sum has to stay,
            with the reason for each.
        InputError: when it is no module, or cannot run on the example.

    Exact when:
        always, at the borders too. A shortcut through an average pool with `ceil_mode` is removed
        for maps whose sides divide by its window; the result then refuses other sizes.

    Examples:
        >>> import torch
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        ...     def forward(self, x):
        ...         return x + self.b(self.a(x).relu())
        >>> plain = remove_residuals(Block().eval(), torch.zeros(1, 4, 8, 8))
        >>> plain.a.out_channels, plain.b.in_channels
        (8, 8)

    Source: RMNet, arXiv:2111.00687.
    """
    done = removal(model, example_inputs)
    if strict and done.kept:
        reasons = "\n".join(f"  {item.where or 'the root'}: {item.reason}" for item in done.kept)
        raise RefusedError(
            f"{len(done.kept)} residuals cannot be removed (strict=False leaves them):\n{reasons}"
        )
    return done.model


def removal(model: nn.Module, example_inputs: Any) -> Removal:
    """Return the network without the residuals that can be removed, and an account of all.

    Args:
        model: any module in eval mode; it stays as it is.
        example_inputs: a tensor or a tuple of tensors that the model accepts.

    Raises:
        RefusedError: when the model is in training mode.
        InputError: when it is no module, or cannot run on the example.

    Examples:
        >>> import torch
        >>> removal(nn.Sequential(nn.ReLU()).eval(), torch.zeros(1, 1, 2, 2)).summary()
        '0 residuals removed, 0 kept; parameters 0 -> 0; multiply-adds 0 -> 0'
    """
    done = rewrite(model, example_inputs, ResidualPass)
    removed = [fold for one in done.passes for fold in one.folds]
    kept = [kept for one in done.passes for kept in one.kept]
    kept += [
        Kept(path, f"its code could not be followed, so that its sums stay ({why})")
        for path, why in done.failures.items()
    ]
    return Removal(done.model, done.folded, example_inputs, tuple(removed), tuple(kept))
