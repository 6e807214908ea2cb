"""The table of `docs/coverage.md`."""

from __future__ import annotations

import datetime
import platform
import re
from collections import Counter
from typing import Any

import torch

from zoo.guests import GUESTS

_HEAD = """\
# Coverage

Small networks of other people's packages, built from their configuration with random weights, live
norm statistics and norm weights of both signs, folded by `refold.reparameterize(model, example)`
and compared in float64. Nothing was downloaded, and nothing in refold is special to any of them.
`benchmarks/ecosystems.py` makes this page.

*Parts* is how many graphs the recording has: 1 is the whole model; there are more where its code
asks for numbers, keeps state or has hooks. *Norms* counts the norms with fixed statistics that a
call runs, *layers* its convolutions and products with matrices, both before → after. *Error* is the
largest relative error of an output. *Seconds* are processor time of the fold, in one thread.
"""


def page(rows: list[dict[str, Any]]) -> str:
    """Return the page as Markdown."""
    measured = [row for row in rows if "norms" in row and not row["missing"]]
    missing = sorted({row["label"].partition(":")[0] for row in rows if row.get("missing")})
    broken = [row for row in rows if "norms" not in row]
    parts = [_HEAD, _summary(measured, missing), _table(measured), _leftovers(measured)]
    parts += _unmeasured({row["label"] for row in rows})
    parts += [f"- `{row['label']}`: {'; '.join(row['faults'])}" for row in broken]
    return "\n".join(parts)


def _summary(rows: list[dict[str, Any]], missing: list[str]) -> str:
    versions = {row["label"].partition(":")[0]: row["version"] for row in rows}
    good = sum(not row["faults"] for row in rows)
    free = sum(row["norms"][0] > 0 == row["norms"][1] for row in rows)
    had = sum(row["norms"][0] > 0 for row in rows)
    worst = max(row["error"] for row in rows)
    whole = sum(row["parts"] == 1 for row in rows)
    text = (
        f"{len(rows)} networks of {len(versions)} packages; {good} without a fault, largest error "
        f"{worst:.0e}; {whole} recorded as a whole; of {had} that have norms {free} run none "
        f"afterwards.\n\n{_machine()} {', '.join(f'{k} {v}' for k, v in versions.items())}.\n"
    )
    return text + (f"\nNot installed: {', '.join(missing)}.\n" if missing else "")


def _unmeasured(labels: set[str]) -> list[str]:
    left = [f"`{guest.label}`" for guest in GUESTS if guest.label not in labels]
    return (
        [f"## Not measured\n\nIn the script, not in this table: {', '.join(left)}."] if left else []
    )


def _machine() -> str:
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    return (
        f"{today}; a shared {platform.machine()} machine, {platform.system()}; "
        f"Python {platform.python_version()}, torch {torch.__version__.partition('+')[0]};"
    )


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| network | parts | norms | layers | error | seconds | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    package = ""
    for row in rows:
        here, _, name = row["label"].partition(":")
        if here != package:
            lines.append(f"| **{here}** | | | | | | |")
            package = here
        norms, layers = (" → ".join(map(str, row[key])) for key in ("norms", "layers"))
        fault = "; ".join([*row["faults"], *filter(None, [row.get("note")])])
        lines.append(
            f"| {name} | {row['parts']} | {norms} | {layers} | {row['error']:.0e} "
            f"| {row['seconds']:.1f} | {fault} |"
        )
    return "\n".join(lines) + "\n"


def _leftovers(rows: list[dict[str, Any]]) -> str:
    lines = ["## Norms that still run\n", "| network | norms | why |", "| --- | --- | --- |"]
    for row in rows:
        kinds = Counter(map(_kind, row["stays"].values()))
        lines += [f"| `{row['label']}` | {count} | {why} |" for why, count in kinds.items()]
    return "\n".join(lines) + "\n"


_KINDS = {
    r"the value of .* is also read by .*": "the value before it is also read elsewhere, unnormed",
    r"no neighbour takes it in: it comes from \S*cat\b.*": "behind a concatenation, in front of an "
    "activation",
    r"no neighbour takes it in: .*": "behind an activation or a sum; what reads it pads, or is no "
    "layer",
}


def _kind(reason: str) -> str:
    """Return a reason without the names of the layers around, so that equal ones count as one."""
    for pattern, said in _KINDS.items():
        if re.fullmatch(pattern, reason):
            return said
    return reason.replace("|", "/")
