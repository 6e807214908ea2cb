"""Evaluation: how good a network is on images that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from refold.errors import InputError
from refold.training.data.datasets import Task
from refold.training.data.image_folders import IGNORE
from refold.training.loop.collectives import gathered, summed
from refold.training.loop.feed import Feed
from refold.training.loop.learner import at_size, outputs
from refold.training.seeds import generator_of

MAIN: dict[Task, str] = {"classify": "top1", "embed": "verification", "segment": "miou"}
"""The metric that selects the best network; higher is better."""
_PAIRS = 3000  # of the same class, and as many of two classes
_FOLDS = 10


@dataclass(frozen=True)
class Judged:
    """What a network achieves, and what it answered.

    Args:
        metrics: by name; those of `MAIN` are shares of 1.
        images: how many this process looked at.
        answers: for each image of this process the class, or None where there are none to compare.
        unreadable: numbers of the images that this process could not read.
    """

    metrics: dict[str, float]
    images: int
    answers: Tensor | None
    unreadable: tuple[int, ...]


def judge(
    network: Callable[[Tensor], Any],
    batches: Feed,
    task: Task,
    classes: int,
) -> Judged:
    """Return what a network achieves.

    With several processes each looks at its own batches, and all get the result of the whole.

    Args:
        network: in evaluation mode; anything that maps images to outputs.
        batches: in `EvalOrder`, where the network computes.
        task: what it is for.
        classes: how many.

    Raises:
        InputError: when there is no readable image.
    """
    score = _SCORES[task](classes, batches.device)
    unreadable: set[int] = set()
    images = 0
    for batch in batches:
        unreadable.update(batch.unreadable)
        valid = batch.valid
        images += int(valid.sum())
        if bool(valid.any()):
            with torch.no_grad():
                said = outputs(network(_chosen(batch.images, valid)))[0].float()
            score.add(said, _chosen(batch.targets, valid))
    # Several processes add in another order than one: the digits beyond are noise.
    metrics = {name: round(value, 7) for name, value in score.result().items()}
    if any(value != value for value in metrics.values()) and not images:
        raise InputError("none of the validation images can be read")
    return Judged(metrics, images, score.answers(), tuple(sorted(unreadable)))


def _chosen(rows: Tensor, which: Tensor) -> Tensor:
    return rows if bool(which.all()) else rows[which.to(rows.device)]


class _Classes:
    """Top-1 and top-5 accuracy, and the cross entropy."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self._device = device
        self._names = ("top1", "top5", "loss") if classes > 5 else ("top1", "loss")
        self._sums = torch.zeros(len(self._names) + 1, dtype=torch.float64)
        self._said: list[Tensor] = []

    def add(self, said: Tensor, targets: Tensor) -> None:
        best = said.argmax(1)
        right = [(best == targets).sum()]
        if "top5" in self._names:
            right.append((said.topk(5, 1).indices == targets[:, None]).sum())
        loss = F.cross_entropy(said, targets, reduction="sum")
        self._sums += torch.stack([*right, loss, loss.new_tensor(len(said))]).cpu()
        self._said.append(best.cpu())

    def result(self) -> dict[str, float]:
        *sums, count = summed(self._sums, self._device)
        return {name: float(x / count) for name, x in zip(self._names, sums, strict=True)}

    def answers(self) -> Tensor | None:
        return torch.cat(self._said) if self._said else None


class _Pixels:
    """Mean intersection over union, and the share of pixels that are right.

    A class that no mask and no answer shows has no share in the mean.
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        self._device, self._classes = device, classes
        self._loss = torch.zeros(1, dtype=torch.float64)
        self._pairs = torch.zeros(classes, classes, dtype=torch.int64)  # true class, answer
        self._said: list[Tensor] = []

    def add(self, said: Tensor, targets: Tensor) -> None:
        maps = at_size(said, targets)
        answers, counted = maps.argmax(1), targets != IGNORE
        loss = F.cross_entropy(maps, targets, ignore_index=IGNORE, reduction="sum")
        pairs = targets[counted] * self._classes + answers[counted]
        self._loss += loss.cpu()
        self._pairs += pairs.bincount(minlength=self._classes**2).cpu().view_as(self._pairs)
        self._said.append(answers.to(torch.uint8).cpu().flatten())

    def result(self) -> dict[str, float]:
        pairs = summed(self._pairs, self._device).double()
        loss = summed(self._loss, self._device)
        both, either = pairs.diag(), pairs.sum(0) + pairs.sum(1) - pairs.diag()
        seen = either > 0
        return {
            "miou": float((both[seen] / either[seen]).mean()),
            "pixels": float(both.sum() / pairs.sum()),
            "loss": float(loss / pairs.sum()),
        }

    def answers(self) -> Tensor | None:
        return torch.cat(self._said) if self._said else None


class _Faces:
    """Verification accuracy: are two images of one class, judged by the cosine between them."""

    def __init__(self, classes: int, device: torch.device) -> None:
        del classes, device  # those to judge by may be others
        self._vectors: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._answers: Tensor | None = None

    def add(self, said: Tensor, targets: Tensor) -> None:
        self._vectors.append(F.normalize(said).cpu())
        self._labels.append(targets.cpu())

    def result(self) -> dict[str, float]:
        vectors, labels = gathered(self._vectors), gathered(self._labels)
        if vectors is None or labels is None:
            return {"verification": float("nan")}
        accuracy, self._answers = verification(vectors, labels)
        return {"verification": accuracy}

    def answers(self) -> Tensor | None:
        return self._answers


_SCORES: dict[Task, Callable[[int, torch.device], Any]] = {
    "classify": _Classes, "embed": _Faces, "segment": _Pixels,
}  # fmt: skip


def verification(vectors: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    """Return how often two images are rightly said to be of one class, and what was said.

    Pairs are drawn once for all; each tenth of them is judged by the threshold that is the best for
    the others, as Labelled Faces in the Wild is.

    Args:
        vectors: embeddings of length 1.
        labels: their classes.

    Shape:
        vectors (N, C); labels (N,).

    Raises:
        InputError: when there are no two images of a class, or no two classes.

    Examples:
        >>> turned = torch.eye(2).repeat_interleave(8, 0)
        >>> verification(turned, torch.arange(2).repeat_interleave(8))[0]
        1.0
    """
    first, second, same = _pairs(labels)
    likeness = (vectors[first] * vectors[second]).sum(1)
    said = torch.zeros_like(same)
    fold = torch.arange(len(same), device=same.device) // 2 % _FOLDS  # a pair of either kind
    for number in range(_FOLDS):
        mine, others = fold == number, fold != number
        if not bool(mine.any()):
            continue
        said[mine] = likeness[mine] > _threshold(likeness[others], same[others])
    return float((said == same).float().mean()), said.cpu()


def _threshold(likeness: Tensor, same: Tensor) -> float:
    """Return the value between two likenesses that separates best."""
    ordered, order = likeness.sort()
    flags = same[order].long()
    # Cutting before place i: all from i on are said to be the same.
    right_above = flags.sum() - torch.cat([flags.new_zeros(1), flags.cumsum(0)])
    right_below = torch.cat([flags.new_zeros(1), (1 - flags).cumsum(0)])
    place = int((right_above + right_below).argmax())
    padded = torch.cat([ordered[:1] - 1, ordered, ordered[-1:] + 1])
    return float((padded[place] + padded[place + 1]) / 2)


def _pairs(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    count = len(labels)
    generator = generator_of("pairs", count)
    first, second = torch.triu_indices(count, count, 1) if count <= _PAIRS else _drawn(count)
    order = torch.randperm(len(first), generator=generator)
    first, second = first[order].to(labels.device), second[order].to(labels.device)
    same = labels[first] == labels[second]
    fewest = min(int(same.sum()), int((~same).sum()), _PAIRS)
    if fewest == 0:
        raise InputError(
            "verification needs two images of one class and two classes in val: add some"
        )
    chosen = torch.cat([same.nonzero()[:fewest, 0], (~same).nonzero()[:fewest, 0]])
    # In turn, so that each fold has of both kinds.
    chosen = chosen.view(2, fewest).T.flatten()
    return first[chosen], second[chosen], same[chosen]


def _drawn(count: int) -> tuple[Tensor, Tensor]:
    """Return many random pairs of a set too large to list them all, neighbours among them.

    Images of a class lie side by side, so neighbours are the pairs of one class.
    """
    generator = generator_of("drawn", count)
    one = torch.randint(count, (40 * _PAIRS,), generator=generator)
    step = torch.randint(1, 20, one.shape, generator=generator)
    far = torch.randint(1, count, one.shape, generator=generator)
    near = torch.arange(len(one)) % 2 == 0
    return one, (one + torch.where(near, step, far)) % count
