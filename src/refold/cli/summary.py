"""What changed between a network and its folded form, as rows and as a record."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from refold.cli.console import count

if TYPE_CHECKING:
    from torch import nn

    from refold.account import Account
    from refold.graph import Kept
    from refold.planning import Plan
    from refold.reasons import Reason
    from refold.workload import Workload

COSTLIER = "exact, but needs more multiply-adds (--allow-growth allows it)"


@dataclass(frozen=True)
class NetworkSize:
    """How big a network is."""

    layers: int  # convolutions and linear layers
    norms: int
    parameters: int
    macs: int | None


def size_of(model: nn.Module, cost: Workload) -> NetworkSize:
    """Count the layers of a network; its cost was counted by the plan."""
    from torch import nn
    from torch.nn.modules.conv import _ConvNd

    modules = list(model.modules())
    layers = sum(isinstance(module, (_ConvNd, nn.Linear)) for module in modules)
    norms = sum(
        any(name == "running_mean" for name, _ in module.named_buffers(recurse=False))
        for module in modules
    )
    return NetworkSize(layers, norms, cost.parameters, cost.macs)


def size_rows(before: NetworkSize, after: NetworkSize) -> list[list[str]]:
    """Return the rows of a table: what, before, after."""
    return [
        ["convolutions and linear layers", str(before.layers), str(after.layers)],
        ["norms", str(before.norms), str(after.norms)],
        ["parameters", count(before.parameters), count(after.parameters)],
        ["multiply-adds", count(before.macs), count(after.macs)],
    ]


def and_more(places: list[str]) -> str:
    """Return the first of several places, and how many more there are."""
    return places[0] + (f" and {len(places) - 1} more" if len(places) > 1 else "")


def kept_lines(kept: Iterable[Kept]) -> list[str]:
    """Return one line for each reason: where it first held, and how often it held.

    >>> from refold.graph import Kept
    >>> kept_lines([Kept("a", "called twice"), Kept("b", "called twice")])
    ['kept at a and 1 more: called twice']
    """
    places: dict[str, list[str]] = {}
    for item in kept:
        reason = COSTLIER if item.costlier else item.reason
        places.setdefault(reason, []).append(item.where or "the root")
    return [f"kept at {and_more(where)}: {reason}" for reason, where in places.items()]


def why_lines(kept: Iterable[Kept]) -> list[str]:
    """Return what each kind of reason among these means and what to do about it.

    >>> from refold.graph import Kept
    >>> why_lines([Kept("a", "it is a TorchScript module"), Kept("b", "it is compiled")])[1]
    'It is not Python code that could be followed (a and 1 more)'
    """
    from refold.reasons import explain

    places: dict[Reason, list[str]] = {}
    for item in kept:
        kind = explain(item.reason)
        if kind is not None:
            places.setdefault(kind, []).append(item.where or "the root")
    return [
        text
        for kind, where in places.items()
        for text in ("", f"{kind.title} ({and_more(where)})", f"  {kind.cause}", f"  {kind.cure}")
    ]


def unrun_lines(plan: Plan) -> list[str]:
    """Return what no recorded call runs, as a line, or none."""
    if not plan.unrun:
        return []
    names = ", ".join(plan.unrun)
    if plan.dropped:
        return [f"left out, as no recorded call runs it: {names}"]
    return [f"no recorded call runs {names} (--drop-unused leaves it out)"]


def record(account: Account, before: NetworkSize, after: NetworkSize) -> dict[str, Any]:
    """Return an account as plain data for JSON, with the sizes that the table shows."""
    data = account.to_dict()
    return {
        "before": asdict(before),
        "after": asdict(after),
        "steps": data["steps"],
        "kept": data["kept"],
    }
