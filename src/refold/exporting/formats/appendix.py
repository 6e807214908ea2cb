"""Text by key behind a program that is read from its start, as a .tflite carries its labels.

The place is the one that TensorFlow Lite has for files that belong to a model: a ZIP archive after
the last byte of the program. `unzip -p FILE refold/classes` shows an entry.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

_FOLDER = "refold/"  # within the archive: others may add files of their own


def append(path: Path, entries: Mapping[str, str]) -> None:
    """Write entries behind the program of a file; others stay, and one of the same key is replaced.

    Args:
        path: the file, which is changed in place.
        entries: text by key.
    """
    members: dict[str, bytes] = {}
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            found = archive.infolist()  # we never write an empty one
            members = {item.filename: archive.read(item) for item in found}
        with path.open("r+b") as file:
            file.truncate(min(item.header_offset for item in found))
    members |= {f"{_FOLDER}{key}": text.encode() for key, text in entries.items()}
    with zipfile.ZipFile(path, "a") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)


def appended(path: Path) -> dict[str, str]:
    """Return the entries of a file; none where there are none."""
    if not zipfile.is_zipfile(path):
        return {}
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.startswith(_FOLDER)]
        return {name[len(_FOLDER) :]: archive.read(name).decode() for name in names}
