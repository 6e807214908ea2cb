"""The inventory of a run's images, a line each: enough to notice that they changed.

Names and sizes of files, and their classes; nothing is read, so a million files take seconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from refold.training.data.datasets import Data

_SHOWN = 3


def inventory(data: Data, place: str | Path) -> str:
    """Return a line for each file of a data set: its path below the folder, its size, its class.

    Args:
        data: the images.
        place: their folder; two folders with the same files have the same inventory.
    """
    root = f"{Path(place)}{os.sep}"
    return "".join(_lines("train", data, root)) + "".join(_lines("val", data, root))


def _lines(part: str, data: Data, root: str) -> Iterator[str]:
    source = data.train if part == "train" else data.val
    for name, mark in source.contents():
        below = name[len(root) :] if name.startswith(root) else f"{part}: {name}"
        line = below.replace("\n", " ")
        yield f"{line}\t{mark}\n"


def difference(before: str, now: str) -> str | None:
    r"""Describe how two inventories differ; None when they do not.

    Examples:
        >>> difference("a\t9 bytes\nb\t5 bytes\n", "a\t8 bytes\nc\t5 bytes\n")
        '3 files differ: c is new; b is gone; a had 9 bytes and has 8 bytes'
    """
    if before == now:
        return None
    old, new = _marks(before), _marks(now)
    found = [f"{name} is new" for name in new if name not in old]
    found += [f"{name} is gone" for name in old if name not in new]
    found += [
        f"{name} had {mark} and has {new[name]}"
        for name, mark in old.items()
        if new.get(name, mark) != mark
    ]
    if not found:
        return "they come in another order"
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    files = "1 file differs" if len(found) == 1 else f"{len(found)} files differ"
    return f"{files}: {'; '.join(found[:_SHOWN])}{more}"


def _marks(inventory: str) -> dict[str, str]:
    rows = (line.rpartition("\t") for line in inventory.split("\n") if line)
    return {name: mark for name, _, mark in rows}
