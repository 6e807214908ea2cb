"""The facts of a report, as plain data: what its page shows, and nothing that it computes."""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, fx

from refold.equivalence import native_dtype
from refold.exporting import version
from refold.inputs import Arguments, tensors
from refold.reporting.comparison import Comparison, Side, record
from refold.reporting.flow import Box, Flow, bytes_of, shape_text
from refold.reporting.kernels import Branches, Window
from refold.reporting.origins import Origins, places, trace_back
from refold.reporting.ranges import Range, range_of
from refold.reporting.stages import stage_of, stages
from refold.table import printable
from refold.workload import workload_of

Data = dict[str, Any]

_PIXELS = 500_000
"""Numbers in all pictures of a page together, about a byte each."""
_MOST, _LEAST = 400, 36
"""Numbers in one picture."""


def gather(subject: Comparison) -> Data:
    """Return everything that the page of a comparison shows, ready for JSON.

    Raises:
        InputError: when a network cannot be recorded.
    """
    return facts_of(subject, *record(subject))


def facts_of(subject: Comparison, before: Side, after: Side) -> Data:
    """Return what the page shows of a comparison whose sides are recorded."""
    origins = trace_back(before.flow, after.flow, subject.account)
    facts = {
        "name": printable(subject.name),
        "verb": subject.verb,
        "version": version(),
        "torch": str(torch.__version__),
        "input": _input_text(subject.inputs),
        "dtype": str(native_dtype(before.model) or "").removeprefix("torch."),
        "before": {"boxes": _boxes(before), **_size(before, subject.inputs)},
        "after": {"boxes": _boxes(after), **_size(after, subject.inputs)},
        "proof": _proof(subject),
        "kept": _kept(subject, before, after),
        "steps": len(subject.account.steps),
    }
    _add_origins(facts, before, after, origins)
    _add_kernels(facts, before, after, origins)
    _add_stages(facts, before, after)
    facts["recipes"] = _recipes(facts, origins)
    return facts


def _input_text(inputs: Arguments | None) -> str:
    return ", ".join(shape_text(tuple(tensor.shape)) for tensor in tensors(inputs))


def _size(side: Side, inputs: Arguments | None) -> Data:
    kinds = Counter(box.kind for box in side.flow.boxes)
    costs = [value.macs for value in side.values.values()]
    return {
        "steps": len(side.flow.boxes) - kinds["input"] - kinds["output"],
        "layers": kinds["conv"] + kinds["linear"],
        "norms": kinds["norm"],
        "bytes": bytes_of(side.model),
        "parameters": sum(parameter.numel() for parameter in side.model.parameters()),
        "macs": sum(costs) if costs else workload_of(side.model, inputs).macs,
    }


def _boxes(side: Side) -> list[Data]:
    return [_box(box, side) for box in side.flow.boxes]


def _box(box: Box, side: Side) -> Data:
    value = side.values.get(box.node)
    time = side.milliseconds.get(box.node)
    weight = None if box.weight is None else range_of(box.weight, channel_axis=int(box.transposed))
    return {
        "place": printable(box.place),
        "kind": box.kind,
        "title": printable(box.title),
        "detail": printable(box.detail),
        "reads": list(box.reads),
        "shape": shape_text(box.shape if value is None else value.shape),
        "parameters": box.parameters,
        "macs": None if value is None else value.macs,
        "peak": None if value is None else _short(value.peak),
        "ms": None if time is None else _short(time),
        "weight": None if weight is None else _range(weight),
    }


def _range(found: Range) -> Data:
    plain = asdict(found) | {"histogram": list(found.histogram)}
    return {
        key: _short(value) if isinstance(value, float) else value for key, value in plain.items()
    }


def _short(value: float, digits: int = 4) -> float | None:
    """Return a number with few digits, None where JSON has no such number."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def _proof(subject: Comparison) -> Data | None:
    proof = subject.proof
    if proof is None:
        return None
    return {
        "exact": _short(proof.exact.max_rel_error, 2),
        "inputs": len(proof.exact.trials),
        "shipped": _short(proof.shipped.max_rel_error, 2),
        "vacuous": proof.shipped.vacuous,
    }


def _kept(subject: Comparison, before: Side, after: Side) -> list[Data]:
    ones, others = dict(enumerate(before.flow.boxes)), dict(enumerate(after.flow.boxes))
    return [
        {
            "place": printable(item.where or "the root"),
            "reason": printable(item.reason),
            "costlier": item.costlier,
            "before": places(ones, item.where)[:50],
            "after": places(others, item.where)[:50],
        }
        for item in subject.account.kept
    ]


def _add_origins(facts: Data, before: Side, after: Side, origins: Origins) -> None:
    """Say of every box of the result where it comes from, and how exact it is."""
    ones, others = before.flow.boxes, after.flow.boxes
    for number, sources in origins.of.items():
        box = facts["after"]["boxes"][number]
        box["from"] = sources
        box["layers"] = origins.layers.get(number, [])
        box["rules"] = [*dict.fromkeys(printable(s.rule) for s in origins.steps.get(number, ()))]
        value = after.values.get(others[number].node)
        known = [before.values.get(ones[source].node) for source in sources]
        was = next((v for v in reversed(known) if v is not None), None)
        if value is not None and was is not None:
            error = was.difference(value)
            box["error"] = None if error is None else _short(error, 2)
    for number, why in origins.gone.items():
        facts["before"]["boxes"][number]["gone"] = printable(why)


def _add_kernels(facts: Data, before: Side, after: Side, origins: Origins) -> None:
    """Add the pictures of the kernels: of the branches, and of what they became."""
    weighty = [n for n, box in enumerate(after.flow.boxes) if box.weight is not None]
    pictures = sum(1 + len(origins.layers.get(number, ())) for number in weighty)
    budget = min(_MOST, max(_LEAST, _PIXELS // max(1, pictures)))
    finders = [Branches(capture) for capture in before.flow.captures]
    for number in weighty:
        weight = after.flow.boxes[number].weight
        assert weight is not None
        layers = [before.flow.boxes[source].node for source in origins.layers.get(number, ())]
        box = facts["after"]["boxes"][number]
        box |= _kernel(weight.detach(), budget, layers, finders, before.flow)


def _kernel(
    weight: Tensor, budget: int, layers: list[fx.Node], finders: list[Branches], flow: Flow
) -> Data:
    """Return the picture of a kernel, and those of the branches that add up to it."""
    shown = Window.of(weight, budget)
    if shown.pixels > 4 * budget:
        return {}
    found = (finder.split(layers, weight, shown) for finder in finders if layers)
    split = next((one for one in found if one is not None), None)
    branches = [] if split is None else split.branches
    whole = shown.cut(weight)
    peak = max(float(tiles.abs().max()) for tiles in (whole, *(b.tiles for b in branches))) or 1.0
    picture = {
        "rows": shown.rows,
        "columns": shown.columns,
        "taps": list(shown.taps),
        "peak": _short(peak),
        "norm": _short(float(weight.double().norm())),
        "pixels": _pixels(whole, peak),
    }
    if split is None:
        return {"kernel": picture}
    parts = [
        {
            "boxes": [flow.of[node] for node in branch.nodes if node in flow.of],
            "norm": _short(branch.norm),
            "pixels": _pixels(branch.tiles, peak),
        }
        for branch in branches
    ]
    return {"kernel": picture, "branches": parts, "rounding": _short(split.error, 2)}


def _pixels(tiles: Tensor, peak: float) -> str:
    """Return numbers as signed bytes in base 64, 127 for the peak."""
    levels = (tiles / peak * 127).round().clamp(-127, 127).to(torch.int8)
    return base64.b64encode(levels.contiguous().numpy().tobytes()).decode()


def _add_stages(facts: Data, before: Side, after: Side) -> None:
    """Add the stages, and say of every box which one it belongs to."""
    boxes = before.flow.boxes
    macs = [facts["before"]["boxes"][n]["macs"] or 0 for n in range(len(boxes))]
    costs = macs if any(macs) else [box.parameters for box in boxes]
    names = stages(boxes, costs)
    facts["stages"] = [printable(name) or "the network" for name in names]
    for side in (before, after):
        known: int | None = None
        data = facts["before" if side is before else "after"]["boxes"]
        for box, plain in zip(side.flow.boxes, data, strict=True):
            found = stage_of(box.place, names)
            known = found if found is not None else known
            plain["stage"] = known if known is not None else 0


def _recipes(facts: Data, origins: Origins) -> list[Data]:
    """Return each kind of fold with the boxes of the result that came about that way."""
    found: dict[tuple[str, ...], list[int]] = {}
    befores, afters = facts["before"]["boxes"], facts["after"]["boxes"]
    for number in origins.changed:
        box = afters[number]
        branches = [branch["boxes"] for branch in box.get("branches", [])] or [box["layers"]]
        words = [_chain(befores[n]["title"] for n in boxes) for boxes in branches]
        key = (box["title"], *sorted(words, key=lambda word: (len(word), word), reverse=True))
        found.setdefault(key, []).append(number)
    ranked = sorted(found.items(), key=lambda item: -len(item[1]))
    return [{"to": key[0], "branches": list(key[1:]), "boxes": boxes} for key, boxes in ranked]


def _chain(titles: Iterable[str]) -> str:
    return " → ".join(titles) or "identity"
