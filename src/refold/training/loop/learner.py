"""A network together with its loss: one module, so that both train, copy and save alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refold.blocks import stack_kernels
from refold.errors import InputError, one_line
from refold.models import AMSoftmax, ArcFace
from refold.training.data.image_folders import IGNORE
from refold.training.loop.freezing import still

if TYPE_CHECKING:
    from refold.training.recipes.recipe import Loss, Recipe


class BatchOutcome(NamedTuple):
    """What a batch gave: the loss, and how many of how many answers were right."""

    loss: Tensor
    right: Tensor
    answers: Tensor


@dataclass(frozen=True)
class Lesson:
    """Distillation: the loss of the labels, and how far the answers are from a teacher's.

    The teacher is not a part of the learner: it neither trains nor is saved.

    Args:
        teacher: maps images to logits.
        temperature: that softens the answers of both.
        weight: of the teacher; the labels have the rest.

    Source: Hinton et al. 2015, arXiv:1503.02531.
    """

    teacher: Callable[[Tensor], Any]
    temperature: float
    weight: float

    def __call__(self, loss: Tensor, said: Tensor, images: Tensor) -> Tensor:
        """Return the loss of labels and teacher."""
        with torch.no_grad():
            told = outputs(self.teacher(images))[0].float() / self.temperature
        own = said.float() / self.temperature
        apart = F.kl_div(own.log_softmax(1), told.log_softmax(1), None, None, "batchmean", True)
        return (1 - self.weight) * loss + self.weight * self.temperature**2 * apart


class Learner(nn.Module):
    """A network, and the loss of what it says.

    Args:
        network: what is trained and deployed.
        loss: of main outputs and targets; it may have parameters of its own.
        auxiliary: the weight of each further output.
        norms_still: whether no norm's statistics move.
        lesson: what is added by a teacher; None for none.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module,
        auxiliary: float,
        norms_still: bool = False,
        lesson: Lesson | None = None,
    ) -> None:
        super().__init__()
        self.network, self.loss, self.auxiliary = network, loss, auxiliary
        self.norms_still, self.lesson = norms_still, lesson

    def train(self, mode: bool = True) -> Learner:
        """Set the mode; norms that are frozen stay in evaluation mode."""
        super().train(mode)
        if mode:
            for norm in still(self.network, every=self.norms_still):
                norm.eval()
        return self

    def forward(self, images: Tensor, targets: Tensor) -> BatchOutcome:
        """Return the loss of a batch and what was right in it.

        Shape:
            images (N, C, H, W); targets (N,), (N, H, W), or mixed labels (N, classes).
        """
        with stack_kernels(self.network):
            main, *others = outputs(self.network(images))
        loss = self.loss(main, targets)
        for other in others:
            loss = loss + self.auxiliary * self.loss(other, targets)
        if self.lesson is not None:
            loss = self.lesson(loss, main, images)
        with torch.no_grad():
            right, answers = self._right(main, targets)
        return BatchOutcome(loss, right, answers)

    def _right(self, main: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if targets.is_floating_point():  # mixed labels: the heavier one
            targets = targets.argmax(1)
        main = at_size(main, targets)
        scores = self.loss.cosines(main) if isinstance(self.loss, (AMSoftmax, ArcFace)) else main
        counted = targets != IGNORE if targets.ndim > 1 else torch.ones_like(targets).bool()
        return ((scores.argmax(1) == targets) & counted).sum(), counted.sum()


def outputs(value: Any) -> list[Tensor]:
    """Return a network's outputs, the main one first, from a tensor, a tuple or a dict.

    Raises:
        InputError: when it is not one of these.

    Examples:
        >>> len(outputs({"main": torch.zeros(1), "aux": torch.ones(1)}))
        2
    """
    if isinstance(value, Tensor):
        return [value]
    parts: list[Any] = []
    if isinstance(value, Mapping):
        named = cast("Mapping[str, Any]", value)
        main = next((name for name in ("main", "out", "logits") if name in named), None)
        parts = [named[main]] if main else []
        parts += [part for name, part in named.items() if name != main]
    elif isinstance(value, (tuple, list)):
        parts = list(cast("tuple[Any, ...]", value))
    found = [part for part in parts if isinstance(part, Tensor)]
    if not found:
        raise InputError(
            f"the network returns {type(value).__name__}; training needs a tensor, a "
            "tuple of them or a dict with 'main'"
        )
    return found


def at_size(logits: Tensor, targets: Tensor) -> Tensor:
    """Return a map of logits in the size of the masks; anything else unchanged.

    Examples:
        >>> at_size(torch.zeros(2, 3, 4, 4), torch.zeros(2, 8, 8)).shape
        torch.Size([2, 3, 8, 8])
    """
    if targets.ndim != 3 or logits.shape[2:] == targets.shape[1:]:
        return logits
    return F.interpolate(logits, targets.shape[1:], mode="bilinear")


class CrossEntropy(nn.Module):
    """Cross entropy of classes or of the pixels of a map, which is brought to the mask's size.

    Args:
        smoothing: of the labels.

    Examples:
        >>> float(CrossEntropy()(torch.zeros(1, 4), torch.tensor([2]))) == torch.tensor(4.0).log()
        tensor(True)
    """

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        self.smoothing = smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss.

        Shape:
            logits (N, classes) or (N, classes, h, w); targets (N,), (N, classes) or (N, H, W).
        """
        logits = at_size(logits, targets)
        ignored = IGNORE if targets.ndim == 3 else -100
        return F.cross_entropy(
            logits, targets, ignore_index=ignored, label_smoothing=self.smoothing
        )


def make_learner(
    network: nn.Module,
    recipe: Recipe,
    classes: int,
    image: tuple[int, ...],
    teacher: nn.Module | None = None,
) -> Learner:
    """Return a network with the loss of a recipe.

    Args:
        network: as built for these classes; for embeddings, without a classifier.
        recipe: which loss.
        classes: how many.
        image: shape of one, (C, H, W).
        teacher: to learn from, where the recipe has one.

    Raises:
        InputError: when the network does not run on such images, or its output does not fit.
    """
    training = network.training
    try:
        with torch.no_grad():
            device = next(network.parameters()).device
            main = outputs(network.eval()(torch.zeros(2, *image, device=device)))[0]
    except InputError:
        raise
    except Exception as error:
        shape = "x".join(map(str, image))
        raise InputError(
            f"{recipe.model} does not run on images of {shape}: {one_line(error)}; choose another "
            "augment.size"
        ) from error
    finally:
        network.train(training)
    ndim = 4 if recipe.task == "segment" else 2
    if main.ndim != ndim or (recipe.task != "embed" and main.shape[1] != classes):
        wanted = "an embedding" if recipe.task == "embed" else f"{classes} classes"
        raise InputError(
            f"{recipe.model} returns {tuple(main.shape)} for two images, but --task {recipe.task} "
            f"needs {wanted}" + (" of every pixel" if ndim == 4 else "")
        )
    if not main.shape[1]:
        raise InputError(
            f"{recipe.model} returns an embedding of no numbers: with num_classes=0 it must leave "
            "its classifier out"
        )
    loss = _loss(recipe.loss, main.shape[1], classes)
    lesson = None
    if teacher is not None and recipe.distill is not None:
        # Not as a module, which the learner would train and save.
        lesson = Lesson(teacher.__call__, recipe.distill.temperature, recipe.distill.weight)
    return Learner(network, loss, recipe.loss.auxiliary, recipe.freeze_norms, lesson)


def _loss(wanted: Loss, width: int, classes: int) -> nn.Module:
    if wanted.name == "cross_entropy":
        return CrossEntropy(wanted.smoothing)
    if wanted.name == "bce":
        from timm.loss.binary_cross_entropy import BinaryCrossEntropy

        return BinaryCrossEntropy(wanted.smoothing)
    kind = AMSoftmax if wanted.name == "am_softmax" else ArcFace
    given = {"scale": wanted.scale, "margin": wanted.margin}
    return kind(width, classes, **{name: x for name, x in given.items() if x is not None})
