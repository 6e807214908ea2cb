"""Write the page: one HTML file with its style, its code and its data inside."""

from __future__ import annotations

import json
import os
import re
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from refold.files import atomic_path
from refold.reporting.comparison import Comparison
from refold.reporting.facts import gather

LIMIT = 3_000_000
"""Bytes that a page of up to some thousand layers stays below."""

_ASSETS = resources.files("refold.reporting") / "assets"


def write_report(subject: Comparison, path: str | os.PathLike[str]) -> Path:
    """Write the report of a comparison, whole or not at all.

    Args:
        subject: what it is about.
        path: the HTML file to create or replace.

    Returns:
        The path.

    Raises:
        InputError: when a network cannot be recorded, or the place cannot be written.
    """
    return write_page(gather(subject), path)


def write_page(facts: dict[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write the page of some facts, whole or not at all."""
    text = render(facts)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def render(facts: dict[str, Any]) -> str:
    """Return the page of some facts as text that needs nothing else.

    Pictures, then histograms, are left out of a page that would be larger than `LIMIT`.

    Args:
        facts: as `gather` returns them.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html.jinja")
    for slimmer in (_as_it_is, _without_pictures, _without_histograms):
        facts = slimmer(facts)
        text = template.render(
            name=facts["name"],
            style=Markup(_asset("report.css")),
            layout=Markup(_library()),
            scripts=[Markup(_asset(name)) for name in _SCRIPTS],
            data=Markup(_embedded(facts)),
        )
        if len(text.encode()) < LIMIT:
            break
    return text


_SCRIPTS = (
    *("base.js", "overview.js", "weights.js", "layout.js", "network.js", "detail.js", "main.js"),
)


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _library() -> str:
    """Return the graph layout with its licence, without its source map, which is another file."""
    code = re.sub(r"^//# sourceMappingURL=.*$", "", _asset("vendor/dagre.min.js"), flags=re.M)
    return f"/*! @dagrejs/dagre 3.1.3\n\n{_asset('vendor/dagre.LICENSE')}*/\n{code}"


def _embedded(facts: dict[str, Any]) -> str:
    """Return JSON in which no name can end the script: ASCII only, without `<`, `>` and `&`."""
    text = json.dumps(facts, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _as_it_is(facts: dict[str, Any]) -> dict[str, Any]:
    return facts


def _without_pictures(facts: dict[str, Any]) -> dict[str, Any]:
    return _without(facts, ("kernel", "branches"))


def _without_histograms(facts: dict[str, Any]) -> dict[str, Any]:
    return _without(facts, ("weight",))


def _without(facts: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    sides = {
        side: facts[side]
        | {
            "boxes": [
                {key: value for key, value in box.items() if key not in keys}
                for box in facts[side]["boxes"]
            ]
        }
        for side in ("before", "after")
    }
    return facts | sides
