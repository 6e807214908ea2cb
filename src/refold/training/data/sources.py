"""Images by number: how the rest of training sees a data set, wherever it is stored.

A source is asked for its images one by one, in any order and from any worker, so that the order of
a run depends on its seed alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

Target = Any
"""A class number, or a mask of them."""


class Source(Protocol):
    """Images that are numbered from 0, each with its target."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def name(self, index: int) -> str:
        """Return an image's name for messages: its path, or its place."""
        ...

    def load(self, index: int) -> tuple[Any, Target]:
        """Return an image (PIL, or a tensor (C, H, W) of uint8) and its target."""
        ...

    def contents(self) -> Iterator[tuple[str, str]]:
        """Yield the files it is made of: the path, and what is to be the same of it, in words."""
        ...


class PixelSource:
    """Images that are in memory.

    Args:
        pixels: (N, C, H, W) of uint8.
        labels: a class number each.
        place: what messages call the whole.
    """

    def __init__(self, pixels: Tensor, labels: Sequence[int], place: str) -> None:
        self.pixels, self.labels, self.place = pixels, list(labels), place

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Return the place and the number."""
        return f"{self.place}, image {index}"

    def load(self, index: int) -> tuple[Tensor, int]:
        """Return an image and its class."""
        return self.pixels[index], self.labels[index]

    def contents(self) -> Iterator[tuple[str, str]]:
        """Yield one entry for all that is in memory."""
        count, *shape = self.pixels.shape
        pixels: Any = self.pixels.contiguous().numpy()
        found = hashlib.sha256(pixels)
        found.update(repr(self.labels).encode())
        yield "pixels", f"{count} images of {'x'.join(map(str, shape))} ({found.hexdigest()[:16]})"


class FileSource:
    """Images in files, each with its class number.

    Args:
        files: a path each.
        labels: a class number each.
        grey: read them with one channel; else with three.
    """

    def __init__(self, files: Sequence[Path], labels: Sequence[int], *, grey: bool = False) -> None:
        self.files, self.labels, self.grey = list(files), list(labels), grey

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """Return the path."""
        return str(self.files[index])

    def load(self, index: int) -> tuple[Any, int]:
        """Return an image and its class."""
        return open_image(self.files[index], "L" if self.grey else "RGB"), self.labels[index]

    def contents(self) -> Iterator[tuple[str, str]]:
        """Yield each path with its size and class."""
        for file, label in zip(map(str, self.files), self.labels, strict=True):
            yield file, f"{size_of(file)}, class {label}"


class MaskSource:
    """Images in files, each with a mask in another file whose pixels are class numbers.

    Args:
        files: the paths of an image and of its mask, each.
    """

    def __init__(self, files: Sequence[tuple[Path, Path]]) -> None:
        self.files = list(files)

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """Return the image's path."""
        return str(self.files[index][0])

    def load(self, index: int) -> tuple[Any, Any]:
        """Return an image and its mask, a torchvision `Mask` (1, H, W)."""
        from torchvision.transforms.v2 import functional as F
        from torchvision.tv_tensors import Mask

        image, mask = self.files[index]
        # Palette indices are the classes: converting them would turn them into colours.
        return open_image(image, "RGB"), Mask(F.pil_to_tensor(open_image(mask, None)))

    def contents(self) -> Iterator[tuple[str, str]]:
        """Yield each path of an image and of a mask with its size."""
        for file in (str(file) for pair in self.files for file in pair):
            yield file, size_of(file)


def size_of(path: str) -> str:
    """Return the size of a file in words."""
    try:
        return f"{os.stat(path).st_size} bytes"  # noqa: PTH116 (there may be a million of them)
    except OSError:  # who reads it names it
        return "no file"


def open_image(file: Any, mode: str | None) -> Any:
    """Return a picture in memory, whole, from a path or an open file.

    Args:
        file: where it is.
        mode: Pillow's, such as "RGB"; None for the file's own.

    Raises:
        ValueError: when its pixels are numbers of an unknown range, which have no colour.
    """
    from PIL import Image

    with Image.open(file) as image:
        image.load()
        if mode in (None, image.mode):
            return image
        return _in_bytes(image).convert(mode)


def _in_bytes(image: Any) -> Any:
    """Return a picture with 8 bits a channel; Pillow itself would make most of 16 bits white."""
    import numpy as np
    from PIL import Image

    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        raise ValueError(f"its pixels are 32-bit numbers (mode {image.mode}), not colours")
    if image.mode[0] != "I":
        return image
    pixels = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((pixels + 128) // 257).astype(np.uint8))


def readable(
    source: Source, index: int, report: Callable[[int], None]
) -> tuple[Any, Target] | None:
    """Return an image, or else the next one that can be read; None when none can.

    Args:
        source: the images.
        index: the wanted one.
        report: called with each image that cannot be read.
    """
    for step in range(len(source)):
        at = (index + step) % len(source)
        try:
            return source.load(at)
        except MemoryError:
            raise
        except Exception:  # decoders raise whatever they like on a broken file
            report(at)
    return None


def first_pixels(source: Source) -> Tensor:
    """Return one readable image as a tensor (C, H, W) of uint8, to learn its size from.

    Raises:
        OSError: when none can be read.
    """
    from torchvision.transforms.v2 import functional as F

    found = readable(source, 0, lambda index: None)
    if found is None:
        raise OSError("none of the images can be read")
    image = found[0]
    return image if isinstance(image, torch.Tensor) else F.pil_to_tensor(image)
