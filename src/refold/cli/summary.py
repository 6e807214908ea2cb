"""What changed between a network and its folded form, as rows and as a record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from refold.cli.console import count

if TYPE_CHECKING:
    from torch import nn


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

    >>> from types import SimpleNamespace as Refusal
    >>> refusal_lines([Refusal(where="a", reason="called twice")] * 2)
    ['refused at a and 1 more: called twice']
    """
    refusals = list(refusals)
    first = {refusal.reason: refusal.where for refusal in reversed(refusals)}
    counts = Counter(refusal.reason for refusal in refusals)
    return [
        f"refused at {first[reason] or 'the root'}"
        f"{f' and {times - 1} more' if times > 1 else ''}: {reason}"
        for reason, times in counts.items()
    ]


def record(before: Size, after: Size, refusals: Iterable[Refused]) -> dict[str, Any]:
    """Return the same as plain data, for JSON."""
    return {
        "before": asdict(before),
        "after": asdict(after),
        "refusals": [{"where": r.where, "reason": r.reason} for r in refusals],
    }
