"""Optional libraries, imported when a format needs them."""

from __future__ import annotations

import importlib
from typing import Any

from refold.errors import MissingDependencyError


def require(library: str, extra: str) -> Any:
    """Import a library.

    Raises:
        MissingDependencyError: When it is not installed; names the extra that brings it.
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise MissingDependencyError(
            f"this needs {library}, which is not installed: pip install 'refold[{extra}]'"
        ) from error
