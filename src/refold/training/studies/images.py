"""Some images of a run, as its network sees them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from refold.training.loop.run_folder import RunFolder
from refold.training.run.begun import begun_with


def images_of(run: Path, count: int, *, train: bool) -> Tensor:
    """Return images from all over the data, nothing about them random: (N, C, H, W).

    Args:
        run: folder of the run.
        count: how many, at most.
        train: whether they are those to learn from, or those for validation.
    """
    from refold.training.data.augment import eval_transform
    from refold.training.data.datasets import open_data
    from refold.training.data.loader import Samples

    begun = begun_with(RunFolder(run), None)
    recipe = begun.recipe
    data = open_data(begun.place, recipe.task)
    source = data.train if train else data.val
    samples = Samples(source, eval_transform(recipe.augment, data), recipe.seed)
    step = max(len(source) // count, 1)
    chosen = range(0, len(source), step)[:count]
    return torch.stack([samples[0, index].image for index in chosen])
