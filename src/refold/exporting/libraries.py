"""Optional libraries, imported when a format needs them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import nn

from refold.errors import ExportError, MissingDependencyError, one_line

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


@contextmanager
def converting(library: str, model: nn.Module) -> Generator[None]:
    """Say of a failure inside which library could not convert what; a full disk is one still.

    Raises:
        ExportError: for it: the passes of these libraries have no error in common.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        name = type(model).__name__
        raise ExportError(f"{library} cannot convert {name}: {one_line(error)}") from error
