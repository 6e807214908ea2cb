"""Recognise the data set in a folder, and open it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from refold.errors import InputError
from refold.training.data.cifar import cifar
from refold.training.data.digits import digits
from refold.training.data.image_folders import (
    Found,
    class_folders,
    flat_validation,
    mask_classes,
    mask_folders,
    same_classes,
    sub_folder,
)
from refold.training.data.sources import FileSource, MaskSource, Source, first_pixels
from refold.training.data.webdataset import ShardSource, shards_of

Task = Literal["classify", "embed", "segment"]

DIGITS = "digits"
FORMS = (
    f"{DIGITS!r}, a folder with train/CLASS/IMAGE and val/CLASS/IMAGE (ImageNet's too, as "
    "extracted or as Kaggle packs it), with train/images, train/masks and val beside them "
    "(--task segment), with CIFAR's binary or Python files, or with train/*.tar and val/*.tar"
)


@dataclass(frozen=True)
class Data:
    """An open data set: training and validation images.

    Args:
        train: for training.
        val: for validation.
        classes: their names, by number.
        channels: of an image.
        side: rows of an image where all have the same number; else None.
        kind: digits, cifar, folder, masks or shards.
    """

    train: Source
    val: Source
    classes: tuple[str, ...]
    channels: int
    side: int | None
    kind: str


def open_data(place: str | Path, task: Task = "classify") -> Data:
    """Open the data set of a folder; `"digits"` is the one that needs none.

    Args:
        place: the folder, or `"digits"`.
        task: what it is for: with "embed" the classes of val may be others than those of train,
            with "segment" the targets are masks.

    Raises:
        InputError: when the folder holds no data set that we know, a class has no image, or val's
            classes are not train's; the message names the path.
        MissingDependencyError: when a library for it is not installed.
    """
    if str(place) == DIGITS:
        train, val = digits()
        names = tuple(str(digit) for digit in range(10))
        return _unless_masks(task, Data(train, val, names, 1, 28, "digits"), place)
    folder = Path(place)
    if not folder.is_dir():
        raise InputError(f"there is no folder {str(place)!r}: give {FORMS}")
    found = cifar(folder)
    if found is not None:
        names = tuple(found.names)
        return _unless_masks(task, Data(found.train, found.val, names, 3, 32, "cifar"), place)
    for open_as in _LAYOUTS:
        data = open_as(folder, task)
        if data is not None and task == "classify" and len(data.classes) == 1:
            raise InputError(
                f"{folder} holds one class, {data.classes[0]!r}, so every answer would be right: "
                "give images of two classes or more"
            )
        if data is not None:
            return data
    raise InputError(f"{folder} holds no data set that refold recognises: give {FORMS}")


def _unless_masks(task: Task, data: Data, place: str | Path) -> Data:
    if task == "segment":
        raise InputError(f"{place} has no masks, which --task segment needs: give {FORMS}")
    return data


def _as_shards(folder: Path, task: Task) -> Data | None:
    train, val = shards_of(folder)
    if not train:
        return None
    if not val:
        raise InputError(f"{folder} has train/*.tar but no val/*.tar")
    sources = ShardSource(train), ShardSource(val)
    highest = max(max(source.labels, default=0) for source in sources)
    names = tuple(str(number) for number in range(highest + 1))
    side = None
    return _unless_masks(task, Data(*sources, names, 3, side, "shards"), folder)


def _as_masks(folder: Path, task: Task) -> Data | None:
    if task != "segment":
        return None
    parts = [MaskSource(mask_folders(folder / name)) for name in ("train", "val")]
    names = tuple(mask_classes(folder, parts[0]))
    return Data(parts[0], parts[1], names, 3, None, "masks")


def _as_kaggle(folder: Path, task: Task) -> Data | None:
    """ImageNet as Kaggle packs it: the images of val lie flat beside a table of their classes."""
    root = folder / "ILSVRC" if (folder / "ILSVRC").is_dir() else folder
    images = root / "Data" / "CLS-LOC"
    if not images.is_dir():
        return None
    train = class_folders(images / "train")
    val = flat_validation(images / "val", folder, train.classes)
    return Data(_files(train), _files(val), tuple(train.classes), 3, None, "folder")


def _as_folders(folder: Path, task: Task) -> Data | None:
    train_folder = sub_folder(folder, ("train",))
    val_folder = sub_folder(folder, ("val", "valid", "validation", "test"))
    if train_folder is None:
        return None
    if val_folder is None:
        raise InputError(f"{folder} has train but no val: add {folder / 'val'}")
    train, val = class_folders(train_folder), class_folders(val_folder)
    if task != "embed":
        same_classes(train_folder, train.classes, val_folder, val.classes)
    return Data(_files(train), _files(val), tuple(train.classes), 3, None, "folder")


def _files(found: Found) -> FileSource:
    return FileSource(found.files, found.labels)


_LAYOUTS: tuple[Callable[[Path, Task], Data | None], ...] = (
    _as_shards, _as_masks, _as_kaggle, _as_folders,
)  # fmt: skip


def check_readable(data: Data) -> tuple[int, ...]:
    """Return the shape of one image of train.

    Raises:
        InputError: when no image of train or of val can be read.
    """
    shapes: list[tuple[int, ...]] = []
    for part, source in (("train", data.train), ("val", data.val)):
        try:
            pixels: Any = first_pixels(source)
        except OSError as error:
            raise InputError(
                f"no image of {part} can be read, {source.name(0)} for one: {error}"
            ) from error
        shapes.append(tuple(pixels.shape))
    return shapes[0]
