"""Data sets whose folders name the classes, and what can be wrong with them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from refold.errors import InputError
from refold.training.data.sources import MaskSource, open_image

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}
IGNORE = 255
"""The mask value of pixels that do not count."""
_LOOKED_AT = 200  # masks that are read to learn how many classes there are
_TABLE = "LOC_val_solution.csv"


class Found(NamedTuple):
    """Files with their class numbers, and the classes' names."""

    files: list[Path]
    labels: list[int]
    classes: list[str]


def sub_folder(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the first of some folders that exists."""
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def images_in(folder: Path) -> list[Path]:
    """Return the image files below a folder, sorted by their path."""
    files = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(path for path in files if path.is_file() and not path.name.startswith("."))


def class_folders(folder: Path) -> Found:
    """Return the images of a folder with one folder a class, sorted by name.

    Raises:
        InputError: when there are no class folders, or one has no image.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: it must hold one folder a class")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    if not names:
        raise InputError(f"{folder} holds no folders: it must hold one a class, with its images")
    files: list[Path] = []
    labels: list[int] = []
    for number, name in enumerate(names):
        mine = images_in(folder / name)
        if not mine:
            raise InputError(
                f"the class folder {folder / name} holds no image ({', '.join(sorted(SUFFIXES))}):"
                " add some, or remove the folder"
            )
        files += mine
        labels += [number] * len(mine)
    return Found(files, labels, names)


def same_classes(
    train: Path, train_classes: Sequence[str], val: Path, val_classes: Sequence[str]
) -> None:
    """Refuse class folders that only one of train and val has.

    Raises:
        InputError: if so; the message names the folders.
    """
    for here, there, mine, theirs in (
        (val, train, val_classes, train_classes),
        (train, val, train_classes, val_classes),
    ):
        alone = sorted(set(mine) - set(theirs))
        if alone:
            shown = ", ".join(str(here / name) for name in alone[:3])
            more = f" and {len(alone) - 3} more" if len(alone) > 3 else ""
            raise InputError(
                f"{shown}{more}: {there} has no such class; train and val must have the same "
                "class folders (--task embed alone may be evaluated on other classes)"
            )


def flat_validation(folder: Path, root: Path, classes: Sequence[str]) -> Found:
    """Return ImageNet's validation images, which lie flat, with the classes of Kaggle's table.

    Raises:
        InputError: when the table is missing, or names an unknown class or a missing file.
    """
    if any(path.is_dir() for path in folder.glob("*")):
        return class_folders(folder)
    table = next((place / _TABLE for place in (root, folder) if (place / _TABLE).is_file()), None)
    if table is None:
        raise InputError(
            f"{folder} holds images without class folders, and {root / _TABLE}, which tells their "
            "classes, is missing"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    files: list[Path] = []
    labels: list[int] = []
    with table.open(newline="") as rows:
        for row in csv.DictReader(rows):
            name = row["PredictionString"].split()[0]
            if name not in numbers:
                raise InputError(f"{table}: {row['ImageId']} is of class {name}, which train lacks")
            files.append(folder / f"{row['ImageId']}.JPEG")
            labels.append(numbers[name])
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise InputError(f"{table} names {missing}, which is missing")
    return Found(files, labels, list(classes))


def mask_folders(folder: Path) -> list[tuple[Path, Path]]:
    """Return images with their masks: `images/NAME` and `masks/NAME.png` of a folder.

    Raises:
        InputError: when a folder, or the mask of an image, is missing.
    """
    for part in ("images", "masks"):
        if not (folder / part).is_dir():
            raise InputError(
                f"there is no folder {folder / part}: --task segment needs images and masks"
            )
    images = images_in(folder / "images")
    if not images:
        raise InputError(f"{folder / 'images'} holds no image")
    pairs: list[tuple[Path, Path]] = []
    for image in images:
        mask = (folder / "masks" / image.relative_to(folder / "images")).with_suffix(".png")
        if not mask.is_file():
            raise InputError(f"{image} has no mask: {mask} is missing")
        pairs.append((image, mask))
    return pairs


def mask_classes(folder: Path, source: MaskSource) -> list[str]:
    """Return the classes that masks have: `classes.txt` names one a line, or the masks tell.

    Raises:
        InputError: when the first masks hold no class at all.
    """
    listed = folder / "classes.txt"
    if listed.is_file():
        return [line.strip() for line in listed.read_text().splitlines() if line.strip()]
    highest = -1
    for _, mask in source.files[:_LOOKED_AT]:
        try:
            values = {value for _, value in open_image(mask, None).getcolors(256) or ()}
        except Exception:  # a broken mask is found, and named, when its image is read
            continue
        numbers = [value for value in values if isinstance(value, int) and value != IGNORE]
        highest = max(highest, *numbers, -1)
    if highest < 0:
        raise InputError(
            f"{folder / 'train' / 'masks'}: no mask has class numbers in its pixels "
            f"(8-bit grey or palette; {IGNORE} is ignored)"
        )
    return [str(number) for number in range(highest + 1)]
