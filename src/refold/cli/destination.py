"""Check that the result can be written before minutes of work go into it."""

from __future__ import annotations

from pathlib import Path

from refold.errors import InputError
from refold.sources.names import suggest

WEIGHTS = (".safetensors", ".pth", ".pt")
"""Files that hold weights alone."""


def check_destination(path: Path, suffixes: tuple[str, ...] = ()) -> Path:
    """Refuse a file that could not be written, by its suffix or its folder.

    Args:
        path: the file.
        suffixes: what it may end in; what can be exported where empty.

    Returns:
        Its whole path: a network's code may change the folder before it is written.

    Raises:
        InputError: if the suffix is unknown, the name is too long, the folder is missing or
            read-only, or a folder has the name of the file.
    """
    from refold.exporting import SUFFIXES
    from refold.files import require_place

    known = suffixes or SUFFIXES
    if path.suffix.lower() not in known:
        raise InputError(
            f"{path} has no suffix that can be {'written' if suffixes else 'exported'}"
            f"{suggest(path.suffix.lower(), known)}: end it in one of {' '.join(known)}"
        )
    require_place(path)
    return whole(path)


def whole(path: Path) -> Path:
    """Return the absolute path of a file: a network's code may change the current folder later.

    Raises:
        InputError: when the current folder is gone.
    """
    try:
        return path.absolute()
    except OSError as error:
        raise InputError(
            f"the current folder no longer exists, so {path} cannot be found: change to another"
        ) from error
