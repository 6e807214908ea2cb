"""One row of the table: a network folded by us and by its peers, both compared in float64."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

import refold
from zoo.calls import run_counting
from zoo.leftovers import count_layers, count_norms, count_scales, foldable, reasons
from zoo.live import enliven
from zoo.nets import Net
from zoo.peers import dropped_by_peer, first_words, fold_with_peer, relative_error

TOLERANCE = 1e-9


@dataclass
class Row:
    """What was measured of one network; `faults` is empty when it passes."""

    label: str
    norms_before: int = 0
    norms_after: int = 0
    layers_before: int = 0
    layers_peer: int = 0
    layers_after: int = 0
    parameters: tuple[int, int] = (0, 0)
    macs: tuple[int | None, int | None] = (None, None)
    error: float = float("inf")
    peer_error: float = float("inf")
    peer_norms: int = 0
    scales: int = 0
    seconds: float = 0.0
    refusals: int = 0
    peer_note: str = ""
    stays: dict[str, str] = field(default_factory=dict[str, str])
    faults: list[str] = field(default_factory=list[str])

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        return asdict(self)


def measure(net: Net) -> Row:
    """Fold one network and its peer's copy; a crash is a fault of the row, not of the table."""
    row = Row(net.label)
    try:
        model = enliven(net.build().double(), net.example())
    except Exception as error:
        row.faults.append(f"cannot be built: {first_words(error)}")
        return row
    row.norms_before = count_norms(model)
    expected, row.layers_before = run_counting(model, net.example())
    try:
        folded = _fold(row, model, net)
    except Exception as error:
        row.faults.append(f"crash: {first_words(error)}")
        return row
    row.error, row.layers_after = _compare(folded, net, expected)
    _fold_with_peer(row, model, net, expected, folded)
    _judge(row, folded)
    return row


def _fold(row: Row, model: nn.Module, net: Net) -> nn.Module:
    example = net.example()
    start = time.perf_counter()
    folded = refold.reparameterize(model, example)
    row.seconds = time.perf_counter() - start
    plan = refold.plan(model, example)
    row.refusals = len(plan.refusals)
    row.parameters = (plan.cost_before.parameters, plan.cost_after.parameters)
    row.macs = (plan.cost_before.macs, plan.cost_after.macs)
    row.norms_after, row.scales = count_norms(folded), count_scales(folded)
    row.stays = reasons(folded)
    return folded


def _fold_with_peer(row: Row, model: nn.Module, net: Net, expected: Any, folded: nn.Module) -> None:
    try:
        peer, row.peer_note = fold_with_peer(model, net.source)
    except Exception as error:
        row.peer_note = first_words(error)
        return
    row.peer_norms = count_norms(peer)
    row.peer_error, row.layers_peer = _compare(peer, net, expected)
    dropped = dropped_by_peer(model, peer) if net.source == "ultralytics" else ()
    if dropped:  # then what is left can only be compared layer by layer
        row.peer_note = f"drops {', '.join(dropped)}: layers counted without them"
        counts = (count_layers(each, dropped) for each in (model, peer, folded))
        row.layers_before, row.layers_peer, row.layers_after = counts


def _compare(model: nn.Module, net: Net, expected: Any) -> tuple[float, int]:
    """Return the error and the number of layers run."""
    try:
        found, count = run_counting(model, net.example())
    except Exception:  # a folded network that no longer runs is as wrong as can be
        return float("inf"), 0
    return relative_error(expected, found), count


def _judge(row: Row, folded: nn.Module) -> None:
    if not row.error <= TOLERANCE:
        row.faults.append(f"error {row.error:.1e}")
    row.faults.extend(foldable(folded))
    if row.layers_peer and row.layers_after > row.layers_peer:
        row.faults.append(f"{row.layers_after} layers, the peer {row.layers_peer}")
    if None not in row.macs and row.macs[1] > row.macs[0]:  # type: ignore[operator]
        row.faults.append("more multiply-adds than before")
