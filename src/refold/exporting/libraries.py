"""Optional libraries, imported when a format needs them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from refold.errors import MissingDependencyError

# What a library tells its makers with, unasked: each import and each conversion would start a
# process that connects to an analytics service.
_REPORTERS = {"openvino": "openvino_telemetry"}


def require_installed(library: str, extra: str) -> None:
    """Refuse to go on without a library; it is not imported yet.

    Raises:
        MissingDependencyError: naming the extra that brings it.
    """
    if importlib.util.find_spec(library) is None:
        raise MissingDependencyError(_missing(library, extra))


def require(library: str, extra: str) -> Any:
    """Import a library with its telemetry off.

    Raises:
        MissingDependencyError: When it is not installed; names the extra that brings it.
    """
    try:
        with _without(_REPORTERS.get(library)):
            return importlib.import_module(library)
    except ImportError as error:
        raise MissingDependencyError(_missing(library.partition(".")[0], extra)) from error


def _missing(library: str, extra: str) -> str:
    return f"this needs {library}, which is not installed: pip install 'refold[{extra}]'"


@contextmanager
def _without(name: str | None) -> Generator[None]:
    """Import as if a module were not installed, unless it is imported already."""
    if name is None or name in sys.modules:
        yield
        return
    sys.modules[name] = None  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        del sys.modules[name]
