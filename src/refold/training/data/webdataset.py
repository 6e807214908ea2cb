"""WebDataset shards: tar files in which `KEY.jpg` and `KEY.cls` are an image and its class.

Shards are usually streamed, which makes the order depend on the number of readers. Here each file's
headers are read once, and images then come from anywhere in it: the order is that of any other data
set, and a run goes on in the middle of an epoch.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from refold.errors import InputError
from refold.training.data.image_folders import SUFFIXES
from refold.training.data.sources import open_image, size_of

_LABELS = (".cls", ".cls2")


class _Record(NamedTuple):
    shard: int
    key: str
    offset: int
    size: int


class ShardSource:
    """The images of some tar files, each with its class number.

    Args:
        shards: the tar files.

    Raises:
        InputError: when a file is not a tar file, or an image has no class.
    """

    def __init__(self, shards: Sequence[Path]) -> None:
        self.shards = list(shards)
        self.labels: list[int] = []
        self._records: list[_Record] = []
        for number, path in enumerate(self.shards):
            self._index(number, path)

    def __len__(self) -> int:
        return len(self._records)

    def name(self, index: int) -> str:
        """Return the shard's path and the key in it."""
        record = self._records[index]
        return f"{self.shards[record.shard]}:{record.key}"

    def load(self, index: int) -> tuple[Any, int]:
        """Return an image and its class."""
        record = self._records[index]
        with self.shards[record.shard].open("rb") as file:
            file.seek(record.offset)
            content = file.read(record.size)
        return open_image(io.BytesIO(content), "RGB"), self.labels[index]

    def contents(self) -> Iterator[tuple[str, str]]:
        """Yield each shard with its size and a digest of the keys, sizes and classes in it."""
        digests = [hashlib.sha256() for _ in self.shards]
        for record, label in zip(self._records, self.labels, strict=True):
            line = f"{record.key} {record.size} {label}\n"
            digests[record.shard].update(line.encode("utf-8", "replace"))
        for path, digest in zip(map(str, self.shards), digests, strict=True):
            yield path, f"{size_of(path)} ({digest.hexdigest()[:16]})"

    def _index(self, number: int, path: Path) -> None:
        images: dict[str, _Record] = {}
        labels: dict[str, int] = {}
        try:
            with tarfile.open(path) as archive:
                for member in archive:
                    # WebDataset's rule: what stands before the first dot of the name is the key.
                    folder, _, base = member.name.rpartition("/")
                    stem, _, ending = base.partition(".")
                    key, suffix = f"{folder}/{stem}".strip("/"), f".{ending.lower()}"
                    if member.isfile() and suffix in SUFFIXES:
                        record = _Record(number, member.name, member.offset_data, member.size)
                        images[key] = record
                    elif member.isfile() and suffix in _LABELS:
                        labels[key] = _number(archive.extractfile(member), path, member.name)
        except (tarfile.TarError, OSError) as error:
            raise InputError(f"{path} is not a complete tar file: {error}") from error
        for key, record in images.items():
            if key not in labels:
                raise InputError(f"{path}: {record.key} has no class: {key}.cls is missing")
            self._records.append(record)
            self.labels.append(labels[key])


def _number(file: Any, path: Path, name: str) -> int:
    text = file.read().decode("ascii", "replace").strip()
    if not text.isdigit():
        raise InputError(f"{path}: {name} holds {text[:20]!r}, which is not a class number")
    return int(text)


def shards_of(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the tar files of train and of val: in folders of these names, or named `train-*`."""
    train, val = (
        sorted((folder / part).glob("*.tar")) or sorted(folder.glob(f"{part}*.tar"))
        for part in ("train", "val")
    )
    return train, val
