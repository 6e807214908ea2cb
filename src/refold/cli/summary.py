"""What changed between a network and its folded form, as rows and as a record."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from refold.cli.console import count

if TYPE_CHECKING:
    from torch import nn


COSTLIER = "exact, but it would need more multiply-adds (--allow-growth makes it)"


class Cost(Protocol):
    """Parameters and multiply-adds, as a plan counts them."""

    @property
    def parameters(self) -> int:
        """Numbers that the network stores."""
        ...

    @property
    def macs(self) -> int | None:
        """Multiply-adds of one call, or None when nobody gave an input."""
        ...


class Refused(Protocol):
    """A fold that was not made."""

    @property
    def where(self) -> str:
        """Module path."""
        ...

    @property
    def reason(self) -> str:
        """Why not."""
        ...

    @property
    def costlier(self) -> bool:
        """Whether it would be exact, and only needs more multiply-adds."""
        ...


@dataclass(frozen=True)
class Size:
    """How big a network is."""

    layers: int  # convolutions and linear layers
    norms: int
    parameters: int
    macs: int | None


def size_of(model: nn.Module, cost: Cost) -> Size:
    """Count the layers of a network; its cost was counted by the plan."""
    from torch import nn
    from torch.nn.modules.conv import _ConvNd

    modules = list(model.modules())
    layers = sum(isinstance(module, (_ConvNd, nn.Linear)) for module in modules)
    norms = sum(
        any(name == "running_mean" for name, _ in module.named_buffers(recurse=False))
        for module in modules
    )
    return Size(layers, norms, cost.parameters, cost.macs)


def size_rows(before: Size, after: Size) -> list[list[str]]:
    """Return the rows of a table: what, before, after."""
    return [
        ["convolutions and linear layers", str(before.layers), str(after.layers)],
        ["norms", str(before.norms), str(after.norms)],
        ["parameters", count(before.parameters), count(after.parameters)],
        ["multiply-adds", count(before.macs), count(after.macs)],
    ]


def refusal_lines(refusals: Iterable[Refused]) -> list[str]:
    """Return one line for each reason: where it first held, and how often it held.

    >>> from refold.graph import Kept
    >>> refusal_lines([Kept("a", "called twice"), Kept("b", "called twice")])
    ['kept at a and 1 more: called twice']
    """
    places: dict[str, list[str]] = {}
    for refusal in refusals:
        reason = COSTLIER if refusal.costlier else refusal.reason
        places.setdefault(reason, []).append(refusal.where or "the root")
    return [
        f"kept at {where[0]}{f' and {len(where) - 1} more' if len(where) > 1 else ''}: {reason}"
        for reason, where in places.items()
    ]


def record(before: Size, after: Size, refusals: Iterable[Refused]) -> dict[str, Any]:
    """Return the same as plain data, for JSON."""
    return {
        "before": asdict(before),
        "after": asdict(after),
        "refusals": [
            {"where": r.where, "reason": r.reason, "costlier": r.costlier} for r in refusals
        ],
    }
