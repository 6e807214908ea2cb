"""The demo's photographs, their preparation, and the labels that a network gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from refold.errors import MissingDependencyError

if TYPE_CHECKING:
    import torch

PHOTOGRAPHS = ("cat", "coffee", "rocket")
CROP = 0.875  # the centre that ImageNet's networks are shown


def photographs(size: int) -> torch.Tensor:
    """Return scikit-image's photographs as one batch, resized, centre-cropped, in [-1, 1].

    Shape: (photographs, 3, size, size).
    """
    import torch

    try:
        from skimage import data
    except ImportError as error:
        raise MissingDependencyError(
            "the demo's photographs need scikit-image: run pip install 'refold[demo]'"
        ) from error
    images = [_prepare(getattr(data, name)(), size) for name in PHOTOGRAPHS]
    return torch.stack(images)


def _prepare(pixels: Any, size: int) -> torch.Tensor:
    import torch
    from torch.nn import functional as F

    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255  # (1, 3, H, W)
    height, width = image.shape[2:]
    scale = size / CROP / min(height, width)
    resized = (round(height * scale), round(width * scale))
    image = F.interpolate(image, resized, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (resized[0] - size) // 2, (resized[1] - size) // 2
    return image[0, :, top : top + size, left : left + size] * 2 - 1


def top5(logits: torch.Tensor) -> list[list[int]]:
    """Return the five likeliest classes of each photograph, likeliest first."""
    return logits.topk(5, dim=-1).indices.tolist()


def labels(classes: list[int]) -> list[str]:
    """Return the shortest names of ImageNet classes."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    return [str(info.index_to_description(index)).split(",")[0] for index in classes]
