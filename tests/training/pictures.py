"""Small data sets on disk, in every layout that is read."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, label: int, side: int = 12) -> Image.Image:
    """Return noise with a bright corner, a different one for each of four labels."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 120, (side, side, 3), dtype=np.uint8)
    half = side // 2
    top, left = half * (label // 2), half * (label % 2)
    pixels[top : top + half, left : left + half] += 120
    return Image.fromarray(pixels)


def folders(
    root: Path, train: int = 6, val: int = 3, classes: tuple[str, ...] = ("ant", "bee"), side=12
) -> Path:
    """Write train/CLASS/N.png and val/CLASS/N.png."""
    for part, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                seed = 1000 * label + number + (500 if part == "val" else 0)
                picture(seed, label, side).save(folder / f"{number}.png")
    return root


def masks(root: Path, train: int = 4, val: int = 2, side: int = 16) -> Path:
    """Write images whose bright half is class 1, and their masks, a border of which is ignored."""
    for part, count in (("train", train), ("val", val)):
        (root / part / "images").mkdir(parents=True)
        (root / part / "masks").mkdir()
        for number in range(count):
            rng = np.random.default_rng(number)
            pixels = rng.integers(0, 100, (side, side, 3), dtype=np.uint8)
            mask = np.zeros((side, side), dtype=np.uint8)
            cut = 4 + number % 8
            pixels[:, cut:] += 150
            mask[:, cut:] = 1
            mask[0] = 255
            Image.fromarray(pixels).save(root / part / "images" / f"{number}.jpg")
            Image.fromarray(mask).save(root / part / "masks" / f"{number}.png")
    return root


def shards(root: Path, train: int = 6, val: int = 4) -> Path:
    """Write two tar files of train and one of val, as WebDataset lays them out."""
    for part, numbers in (("train-0", train), ("train-1", train), ("val-0", val)):
        with tarfile.open(root / f"{part}.tar", "w") as archive:
            for number in range(numbers):
                label = number % 2
                content = io.BytesIO()
                picture(number, label).save(content, "PNG")
                add(archive, f"{part}/{number:04}.png", content.getvalue())
                add(archive, f"{part}/{number:04}.cls", str(label).encode())
    return root


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to a tar file."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def cifar10(root: Path, each: int = 4) -> Path:
    """Write CIFAR-10's binary form with a few random records a file."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{part}.bin" for part in range(1, 6)), "test_batch.bin"]:
        records = rng.integers(0, 256, (each, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(f"kind{n}" for n in range(10)) + "\n\n")
    return root
