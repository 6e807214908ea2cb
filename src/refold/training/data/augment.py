"""Prepare images for a network with torchvision's transforms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from refold.errors import InputError
from refold.training.data.image_folders import IGNORE
from refold.training.data.loader import Transform

if TYPE_CHECKING:
    from refold.training.data.datasets import Data
    from refold.training.recipes.recipe import Augment

MEANS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "digits": ((0.131,), (0.308,)),
    "cifar": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}
"""Mean and standard deviation of a channel; those of ImageNet for all others."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def image_side(augment: Augment, data: Data) -> int:
    """Return the side of the images that the network sees: the recipe's, the data's, or 224."""
    return augment.size or data.side or 224


def statistics(augment: Augment, data: Data) -> tuple[Sequence[float], Sequence[float]]:
    """Return the mean and the standard deviation that images are normalised by.

    Raises:
        InputError: when the recipe has neither one value nor one per channel.
    """
    for name, asked in (("mean", augment.mean), ("std", augment.std)):
        if asked is not None and len(asked) not in (1, data.channels):
            raise InputError(
                f"augment.{name} has {len(asked)} numbers, and the images {data.channels} "
                "channels: give one value, or one per channel"
            )
    mean, std = MEANS.get(data.kind, IMAGENET)
    return augment.mean or mean, augment.std or std


def train_transform(augment: Augment, data: Data) -> Transform:
    """Return the transform that augments an image for training: into bytes, where it can.

    What is erased becomes the mean of each channel, which is no byte: the images are numbers then.
    """
    from torchvision.transforms import v2

    side = image_side(augment, data)
    steps: list[Any] = [v2.ToImage()]
    if augment.crop == "resized":
        crop = v2.RandomResizedCrop(side, scale=augment.scale, antialias=True)
        steps = [_CutOut(crop)]
    elif augment.crop == "pad":
        steps += [_fitted(side, data), v2.RandomCrop(side, augment.pad, fill=_fill())]
    else:
        steps.append(v2.Resize((side, side), antialias=True))
    if augment.flip:
        steps.append(v2.RandomHorizontalFlip())
    if augment.shift:
        shift = (augment.shift, augment.shift)
        steps.append(v2.RandomAffine((-augment.rotate, augment.rotate), shift, fill=_fill()))
    if augment.jitter:
        steps.append(v2.ColorJitter(augment.jitter, augment.jitter, augment.jitter))
    if augment.auto:
        steps.append(_auto(augment.auto))
    erased = [numbers(augment, data), v2.RandomErasing(augment.erase)] if augment.erase else []
    return _Joint(v2.Compose(steps), erased)


def eval_transform(augment: Augment, data: Data) -> Transform:
    """Return the transform that prepares an image for evaluation: nothing random."""
    return transform_by(preprocessing(augment, data))


def eval_bytes(augment: Augment, data: Data) -> Transform:
    """Return the same without its last step: `numbers` of a batch is that of its images."""
    return _cut_by(preprocessing(augment, data), [])


def numbers(augment: Augment, data: Data) -> Numbers:
    """Return what makes the numbers that the network sees of the bytes of images."""
    return Numbers(*statistics(augment, data))


class Numbers:
    """Bytes, as the numbers that a network sees: shares of 255, normalised by channel.

    A byte is a quarter of a number: bytes travel from the processes that read to the device of the
    network, and become numbers there. What is no byte is left as it is.

    Args:
        mean: that is taken off each channel, or one for all.
        std: that each channel is divided by, or one for all.

    Shape:
        (..., C, H, W), of uint8 or float32 -> the same shape of float32.

    Examples:
        >>> numbers = Numbers([0.5], [0.25])
        >>> numbers(torch.tensor([[[0, 255]]], dtype=torch.uint8)).tolist()
        [[[-2.0, 2.0]]]
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = torch.tensor(list(mean)), torch.tensor(list(std))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the numbers, in memory of their own where they were bytes."""
        if images.dtype != torch.uint8:
            return images
        mean, std = (x.to(images.device).view(-1, 1, 1) for x in (self.mean, self.std))
        return images.to(torch.float32).mul_(1 / 255).sub_(mean).div_(std)


def preprocessing(augment: Augment, data: Data) -> dict[str, Any]:
    """Return how an image is prepared for evaluation, and so for use, as plain values.

    `resize` is the length of the shorter side, or both sides as [rows, columns]; `crop` is what is
    cut out of the middle, None for nothing. Pixels are divided by 255, then normalised.
    """
    side = image_side(augment, data)
    resized = augment.crop == "resized"
    mean, std = statistics(augment, data)
    return {
        "input": [data.channels, side, side],
        "colour": "L" if data.channels == 1 else "RGB",
        "resize": round(side / augment.centre) if resized else [side, side],
        "crop": [side, side] if resized else None,
        "interpolation": "bilinear",
        "antialias": True,
        "scale": 1 / 255,
        "mean": list(mean),
        "std": list(std),
    }


def transform_by(steps: Mapping[str, Any]) -> Transform:
    """Return the transform that does what `preprocessing` says."""
    return _cut_by(steps, [Numbers(steps["mean"], steps["std"])])


def _cut_by(steps: Mapping[str, Any], last: Sequence[Callable[[Any], Any]]) -> Transform:
    from torchvision.transforms import v2

    made: list[Any] = [v2.ToImage(), v2.Resize(steps["resize"], antialias=steps["antialias"])]
    if steps["crop"] is not None:
        made.append(v2.CenterCrop(steps["crop"]))
    return _Joint(v2.Compose(made), last)


class _CutOut:
    """A random crop that takes its part of a picture before it becomes a tensor.

    The numbers are those of the crop itself; what it leaves out is never copied.

    Args:
        crop: torchvision's.
    """

    def __init__(self, crop: Any) -> None:
        self.crop = crop

    def __call__(self, image: Any, *mask: Any) -> Any:
        from torchvision.transforms.v2 import functional as F

        crop = self.crop
        place = crop.make_params([image])
        parts = [F.crop(x, *(place[key] for key in _PLACE)) for x in (image, *mask)]
        parts[0] = F.to_image(parts[0])
        made = [F.resize(x, crop.size, crop.interpolation, antialias=crop.antialias) for x in parts]
        return tuple(made) if mask else made[0]


_PLACE = ("top", "left", "height", "width")


def _fill() -> Any:
    """What stands where an image has been moved away: black, and nothing that counts in a mask."""
    from torchvision import tv_tensors

    return {tv_tensors.Mask: IGNORE, tv_tensors.Image: 0}


def _fitted(side: int, data: Data) -> Any:
    from torchvision.transforms import v2

    return v2.Identity() if data.side == side else v2.Resize((side, side), antialias=True)


def _auto(name: str) -> Any:
    from torchvision.transforms import v2

    makers = {"autoaugment": v2.AutoAugment, "randaugment": v2.RandAugment}
    return makers.get(name, v2.TrivialAugmentWide)()


class _Joint:
    """Transforms of an image, and of its mask where the target is one.

    Args:
        steps: torchvision's transforms, as one.
        last: what is done to the image alone after them.
    """

    def __init__(self, steps: Any, last: Sequence[Callable[[Any], Any]]) -> None:
        self.steps, self.last = steps, last

    def __call__(self, image: Any, target: Any) -> tuple[torch.Tensor, Any]:
        from torchvision import tv_tensors

        if isinstance(target, tv_tensors.Mask):
            image, mask = self.steps(image, target)
            target = mask.as_subclass(torch.Tensor)[0].long()
        else:
            image = self.steps(image)
        image = image.as_subclass(torch.Tensor)
        for step in self.last:
            image = step(image)
        return image, target
