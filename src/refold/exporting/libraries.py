"""Optional libraries, imported when a format needs them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from refold.errors import MissingDependencyError

# What a library tells its makers with, unasked: each import and each conversion would start a
# process that connects to an analytics service.
_REPORTERS = {"openvino": "openvino_telemetry"}


def require(library: str, extra: str) -> Any:
    """Import a library with its telemetry off.

    Raises:
        MissingDependencyError: When it is not installed; names the extra that brings it.
    """
    try:
        with _without(_REPORTERS.get(library)):
            return importlib.import_module(library)
    except ImportError as error:
        raise MissingDependencyError(
            f"this needs {library}, which is not installed: pip install 'refold[{extra}]'"
        ) from error


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
