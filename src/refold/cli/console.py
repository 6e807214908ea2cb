"""Where text goes: results to standard output, progress and complaints to standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

# A pipe or a log file has no width: never wrap or cut what may be searched later.
UNBOUNDED = 100_000


def _console(stream: TextIO) -> Console:
    width = None if stream.isatty() else UNBOUNDED
    return Console(file=stream, width=width, highlight=False, soft_wrap=not stream.isatty())


def out() -> Console:
    """Return a console on the standard output of this moment (tests and pipes replace it)."""
    return _console(sys.stdout)


def err() -> Console:
    """Return a console on the standard error of this moment."""
    return _console(sys.stderr)


def say(text: str) -> None:
    """Print one line or block of result, never interpreting brackets as markup."""
    out().print(text, markup=False)


def note(text: str) -> None:
    """Print one line that a reader should see but a pipe should not."""
    err().print(text, style="dim", markup=False)


def complain(text: str) -> None:
    """Print the one line of an error: whatever newlines it holds become spaces."""
    err().print(f"refold: {' '.join(text.split())}", style="red", markup=False)


def first_line(error: BaseException) -> str:
    r"""Return the first line of somebody else's error, else its kind: enough for one of ours.

    >>> first_line(ValueError("no such size\nmore"))
    'no such size'
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


def print_json(record: object) -> None:
    """Print a record as indented JSON, ASCII only, with nothing around it."""
    sys.stdout.write(json.dumps(record, indent=2, default=str) + "\n")


@contextmanager
def step(title: str) -> Generator[None]:
    """Show a spinner while the block runs, then what was done and how long it took."""
    console, start = err(), time.perf_counter()
    with console.status(f"{title} ..."):
        yield
    seconds = time.perf_counter() - start
    console.print(f"{title}: {seconds:.1f} s", style="dim", markup=False)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; every column after the first is right-aligned."""
    grid = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for index, column in enumerate(columns):
        grid.add_column(column, justify="right" if index else "left", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    out().print(grid)


def count(number: float | None) -> str:
    """Shorten a count to three digits, as `3.42 M`; a count that nobody made is a dash.

    >>> count(3_420_000), count(512), count(999_999), count(None)
    ('3.42 M', '512', '1 M', '-')
    """
    if number is None:
        return "-"
    digits, power = f"{number:.2e}".split("e")
    unit = min(int(power) // 3, 3)
    value = float(digits) * 10 ** (int(power) - 3 * unit)
    return f"{value:.3g} {('', 'k', 'M', 'G')[unit]}".strip()
