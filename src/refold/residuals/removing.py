"""Remove residual connections: the same function as a chain of plain layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from refold.account import Account, require_none
from refold.graph import Kept, Rewritten, outside_modes, rewrite
from refold.inputs import required
from refold.residuals.passes import ResidualPass
from refold.workload import workload_of


@dataclass(frozen=True, eq=False, kw_only=True)
class Removal(Account):
    """A network without residuals, and what that took: `steps` are the sums that are gone.

    Args:
        folded: the network with its residuals, its norms folded.
    """

    folded: nn.Module = field(repr=False)


@outside_modes()
def remove_residuals(model: nn.Module, example_inputs: Any, *, strict: bool = False) -> nn.Module:
    """Return the same function without residual additions: norms folded, shortcuts carried along.

    The convolutions of a branch get extra channels that hand its input on, and the last one adds
    it. This needs more parameters and multiply-adds than the residual did, and usually costs speed;
    it is for devices and pruners that want a plain chain.

    Args:
        model: any module in eval mode; it stays as it is.
        example_inputs: a tensor, a tuple or list of arguments, or a mapping of them by name.
        strict: raise when a sum of two values has to stay.

    Raises:
        RefusedError: when the model is in training mode; with `strict`, when a sum has to stay,
            with the reason for each.
        InputError: when it is not a module, or cannot run on the example.

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
    done = rewrite(model, required(model, example_inputs), ResidualPass)
    if strict:
        require_none(_kept(done))
    return done.model


def removal(model: nn.Module, example_inputs: Any) -> Removal:
    """Return the network without the residuals that can be removed, and an account of all.

    Args:
        model: any module in eval mode; it stays as it is.
        example_inputs: a tensor, a tuple or list of arguments, or a mapping of them by name.

    Raises:
        RefusedError: when the model is in training mode.
        InputError: when it is not a module, or cannot run on the example.

    Examples:
        >>> import torch
        >>> removal(nn.Sequential(nn.ReLU()).eval(), torch.zeros(1, 1, 2, 2)).summary()
        '0 removed; parameters 0 -> 0; multiply-adds 0 -> 0'
    """
    inputs = required(model, example_inputs)
    done = rewrite(model, inputs, ResidualPass)
    return Removal(
        model=done.model,
        steps=tuple(fold for one in done.passes for fold in one.folds),
        kept=_kept(done),
        cost_before=workload_of(done.folded, inputs),
        cost_after=workload_of(done.model, inputs),
        done="removed",
        folded=done.folded,
    )


def _kept(done: Rewritten[ResidualPass]) -> tuple[Kept, ...]:
    unread = (
        Kept(path, f"its code could not be followed, so its sums stay ({why})")
        for path, why in done.failures.items()
    )
    return (*(kept for one in done.passes for kept in one.kept), *unread)
