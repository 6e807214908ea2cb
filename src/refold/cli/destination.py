"""Look at where the result should go before minutes of work go into it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from refold.cli.names import suggest
from refold.errors import InputError


def check_destination(path: Path) -> None:
    """Refuse a file that could not be written, by its suffix or its folder.

    Raises:
        InputError: if the suffix is unknown, the folder is missing or read-only, or a folder has
            the name of the file.
    """
    from refold.export import SUFFIXES

    if path.suffix not in SUFFIXES:
        raise InputError(
            f"{path} has no suffix that can be exported{suggest(path.suffix, SUFFIXES)}: "
            f"end it in one of {' '.join(SUFFIXES)}"
        )
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the name of a file")
    folder = path.parent
    if not folder.exists():
        folder = folder.parent  # one missing folder is made when the file is written
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: make it first, or choose another place")
    try:
        tempfile.TemporaryFile(dir=folder).close()  # access bits do not know a read-only disk
    except OSError as error:
        raise InputError(
            f"{folder} is not writable ({error.strerror}): choose another place"
        ) from error
