"""The standard streams while a command runs: results alone in one, and neither can trip it up."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, TextIO, cast


class OutputLost(Exception):  # noqa: N818 - no error of ours: the reader has left, or the disk is full
    """Standard output can no longer be written to."""

    def __init__(self, error: OSError) -> None:
        super().__init__((error.strerror or str(error)).lower())
        self.reader_left = error.errno == errno.EPIPE


class _Stream:
    """A text stream that raises one exception of its own, which no library catches."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError as error:
            self._fail(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._fail(error)

    def close(self) -> None:
        """Stay open: a network's file may close what it prints to, and others still write there."""
        self.flush()

    def _fail(self, error: OSError) -> None:
        self._discard()
        raise OutputLost(error) from error

    def _discard(self) -> None:
        """Write to nowhere from now on: at exit Python empties what it holds, or complains."""
        with suppress(OSError, ValueError):  # a stream in memory has no descriptor
            number = self._stream.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)


class _Remarks(_Stream):
    """Standard error: nowhere is left to say that it is full, and no reason to stop."""

    def _fail(self, error: OSError) -> None:
        del error
        self._discard()


_results: TextIO | None = None


def results() -> TextIO:
    """Return where results go: the standard output that the command was started with."""
    return _results or sys.stdout


@contextmanager
def safe_streams() -> Generator[None]:
    """Make printing fail in one way only, whatever the name, a closed pipe or a full disk.

    A character that the encoding lacks (a plain C locale) stands as an escape. A standard output
    that takes no more raises `OutputLost`; a standard error that does is given up in silence.
    """
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout = cast("TextIO", _Stream(sys.stdout))
    sys.stderr = cast("TextIO", _Remarks(sys.stderr))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@contextmanager
def results_apart() -> Generator[None]:
    """Give standard output to `results` alone for a block; what anyone else prints is a remark."""
    global _results
    before, _results = _results, results()
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _results = before
