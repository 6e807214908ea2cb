"""The stages of a network: its largest parts, by the names of its modules."""

from __future__ import annotations

from collections.abc import Sequence

from refold.reporting.flow import Box

_FEW, _MANY = 4, 16
_HEAVY = 0.5
"""A part with at least this share of the cost is shown as its own parts."""


def stages(boxes: Sequence[Box], costs: Sequence[float]) -> list[str]:
    """Return the module paths of the parts that a network is best told in, in order.

    One part that holds most of the cost is told as its own parts: `stages` becomes `stages.0`,
    `stages.1` and so on, while there are few. What costs nothing is left to the part before it.

    Args:
        boxes: of the network.
        costs: what each of them costs.
    """
    found = [""]
    done: set[str] = set()
    weight = _weights(boxes, costs)
    total = sum(costs) or 1.0
    layers = {box.place for box in boxes}
    while len(found) < _MANY:
        heavy = max((s for s in found if s not in done), key=weight.__getitem__, default=None)
        if heavy is None:
            break
        below = _children(boxes, heavy)
        wanted = len(found) < _FEW or weight[heavy] > _HEAVY * total
        is_row = bool(heavy) and set(below) <= layers  # of single layers: they are not stages
        if not wanted or len(found) - 1 + len(below) > _MANY or is_row or not below:
            done.add(heavy)
            continue
        at = found.index(heavy)
        found[at : at + 1] = below
    return [stage for stage in found if weight[stage]] or found


def stage_of(place: str, among: Sequence[str]) -> int | None:
    """Return the number of the stage that a place lies in, None for calls outside of all.

    >>> stage_of("layer1.0.conv", ["stem", "layer1"]), stage_of("flatten", ["stem", "layer1"])
    (1, None)
    """
    for number, stage in enumerate(among):
        if not stage or place == stage or place.startswith(f"{stage}."):
            return number
    return None


def _weights(boxes: Sequence[Box], costs: Sequence[float]) -> dict[str, float]:
    found = {"": 0.0}
    for box, cost in zip(boxes, costs, strict=True):
        parts = box.place.split(".")
        for length in range(len(parts) + 1):
            path = ".".join(parts[:length])
            found[path] = found.get(path, 0.0) + cost
    return found


def _children(boxes: Sequence[Box], path: str) -> list[str]:
    """Return the modules right below a path that hold boxes of their own weight, in order."""
    depth = path.count(".") + 1 if path else 0
    found: dict[str, None] = {}
    for box in boxes:
        parts = box.place.split(".")
        below = ".".join(parts[: depth + 1])
        is_inside = not path or box.place.startswith(f"{path}.")
        is_module = len(parts) > depth + 1 or box.parameters > 0
        if is_inside and is_module and len(parts) > depth:
            found[below] = None
    return list(found)
