"""Check that the result can be written before minutes of work go into it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from refold.cli.console import note
from refold.errors import InputError
from refold.files import is_file, is_folder
from refold.sources.names import suggest
from refold.sources.runs import CHECKPOINTS, run_at

if TYPE_CHECKING:
    from refold.cli.options import Network

WEIGHTS = (".safetensors", ".pth", ".pt")
"""Files that hold weights alone."""


def check_destination(
    path: Path, suffixes: tuple[str, ...] = (), sources: Iterable[Path] = ()
) -> Path:
    """Refuse a file that could not be written, by its suffix or its folder, or that is read.

    Args:
        path: the file.
        suffixes: what it may end in; what can be exported where empty.
        sources: the files that the command reads.

    Returns:
        Its whole path: a network's code may change the folder before it is written.

    Raises:
        InputError: if the suffix is unknown, the name is too long, the folder is missing or
            read-only, a folder has the name of the file, or it is one of the sources.
    """
    from refold.exporting import ELSEWHERE, SUFFIXES, companions
    from refold.files import require_apart, require_place

    known = suffixes or SUFFIXES
    if path.suffix.lower() not in known:
        way = "" if suffixes else ELSEWHERE.get(path.suffix.lower(), "")
        raise InputError(
            f"{path} has no suffix that can be {'written' if suffixes else 'exported'}: end it in "
            f"one of {' '.join(known)}{f'; {way}' if way else suggest(path.suffix.lower(), known)}"
        )
    require_place(path)
    require_apart(path, sources, companions(path))
    return whole(path)


def note_written(output: Path, place: Path) -> None:
    """Say which file was written, and how much that is with the files that belong to it.

    Args:
        output: the file as the user named it.
        place: the same, whole.
    """
    from refold.exporting import companions

    beside = [place.with_name(name) for name in companions(place)]
    beside = [file for file in beside if is_file(file)]
    size = sum(file.stat().st_size for file in (place, *beside)) / 2**20
    more = "".join(f", {file.name} included" for file in beside)
    note(f"wrote {output} ({size:.1f} MiB{more})")


def sources_of(network: Network, *others: Path | None) -> list[Path]:
    """Return the files that a command reads: those of its network, and others that it is given.

    Of `file.py:factory` the file, of the folder of a run its settings and checkpoints, of another
    folder all that lies there.
    """
    names = [network.model, *(str(place) for place in (network.checkpoint, *others) if place)]
    return [file for name in names for file in _files_of(name)]


def _files_of(name: str) -> list[Path]:
    found = run_at(name)
    path = Path(name.removeprefix("hf:"))
    if found:
        run = found[0]
        return [*run.glob("*.json"), *run.glob("*.yaml"), *run.glob(f"{CHECKPOINTS}/*")]
    if is_folder(path):
        return [file for file in path.iterdir() if is_file(file)]
    return [path, Path(name.rpartition(":")[0])]


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
