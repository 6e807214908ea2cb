"""Names that are nearly right: the suggestion at the end of an error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean a, b?` for the nearest known names, or nothing.

    >>> suggest("resnet81", ["resnet18", "vgg11"])
    '; did you mean resnet18?'
    """
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {', '.join(near)}?" if near else ""
