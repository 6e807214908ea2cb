"""A plain text table: columns as wide as their widest cell, a line a row whatever a cell holds."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

# Marks that turn the direction of the text around them, or take no room: names look like others.
_HIDDEN = frozenset("\u061c\u200b\u200e\u200f\u2060\ufeff\u00ad")
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_UNSEEN = frozenset({"Cc", "Cs", "Zl", "Zp"})  # controls, lone surrogates, line separators


def printable(text: str) -> str:
    r"""Return the text as one line that does nothing to a terminal: controls stand as escapes.

    Examples:
        >>> printable("\x1b[31mlayer\n1")
        '\\x1b[31mlayer\\n1'
        >>> printable("größe 層")
        'größe 層'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(letter) for letter in text)


def _escape(letter: str) -> str:
    unseen = unicodedata.category(letter) in _UNSEEN or letter in _HIDDEN or letter in _TURNING
    return letter.encode("unicode_escape").decode("ascii") if unseen else letter


def render(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table with a rule under its header.

    Examples:
        >>> print(render(["name", "n"], [["conv", "12"]]))
        name  n
        ----  --
        conv  12
    """
    cells = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    cells.insert(1, ["-" * width for width in widths])
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)
