"""Where text goes: results to standard output, progress and complaints to standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from refold.cli.streams import results
from refold.table import printable

# A pipe or a log file has no width: never wrap or cut what may be searched later.
UNBOUNDED = 100_000


def _console(stream: TextIO) -> Console:
    """Return a console that takes text as it is: no brackets, emoji or numbers in it are special.

    The stream alone says whether it is a terminal: no variable brings a spinner into a log file.
    """
    is_terminal = stream.isatty()
    return Console(
        file=stream, width=None if is_terminal else UNBOUNDED, soft_wrap=not is_terminal,
        force_terminal=is_terminal, markup=False, emoji=False, highlight=False,
    )  # fmt: skip


def out() -> Console:
    """Return a console on the standard output of this moment (tests and pipes replace it)."""
    return _console(results())


def err() -> Console:
    """Return a console on the standard error of this moment."""
    return _console(sys.stderr)


def line(text: str, style: str = "") -> Text:
    """Return any text, a user's too, as one line of a console: nothing in it is interpreted."""
    return Text(printable(text), style)


def say(*lines: str) -> None:
    """Print lines of result, each as one line whatever it holds."""
    if lines:
        out().print(Text("\n").join(map(line, lines)))


def say_block(text: str) -> None:
    """Print a block of result that already has its lines, such as `str()` of a plan."""
    say(*text.split("\n"))


def note(text: str) -> None:
    """Print one line that a reader should see but a pipe should not."""
    err().print(line(text, "dim"))


def remark_block(text: str) -> None:
    """Print a block of remarks that already has its lines, such as a traceback."""
    err().print(Text("\n").join(map(line, text.rstrip("\n").split("\n"))))


def complain(text: str) -> None:
    """Print the one line of an error: whatever newlines it holds become spaces."""
    err().print(line(f"refold: {' '.join(text.split())}", "red"))


def print_json(record: object) -> None:
    """Print a record as indented JSON, ASCII only, with nothing around it."""
    results().write(json.dumps(record, indent=2, default=str) + "\n")
    results().flush()


def spinner(title: str) -> AbstractContextManager[object]:
    """Show what is being done while a block runs, if there is a terminal to show it."""
    return err().status(line(f"{title} ..."))


@contextmanager
def step(title: str) -> Generator[None]:
    """Show a spinner while the block runs, then what was done and how long it took."""
    start = time.perf_counter()
    with spinner(title):
        yield
    note(f"{title}: {time.perf_counter() - start:.1f} s")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a title, which may be wider, and a table, its columns but the first right-aligned."""
    out().print(line(title, "bold"))
    grid = Table(box=SIMPLE_HEAD)
    for index, column in enumerate(columns):
        grid.add_column(line(column), justify="right" if index else "left", overflow="fold")
    for row in rows:
        grid.add_row(*map(line, row))
    out().print(grid)


def count(number: float | None) -> str:
    """Shorten a count to three digits, as `3.42 M`; an unknown count is a dash.

    >>> count(3_420_000), count(512), count(999_999), count(None)
    ('3.42 M', '512', '1 M', '-')
    """
    if number is None:
        return "-"
    digits, power = f"{number:.2e}".split("e")
    unit = min(int(power) // 3, 3)
    value = float(digits) * 10 ** (int(power) - 3 * unit)
    return f"{value:.3g} {('', 'k', 'M', 'G')[unit]}".strip()
