"""ResNet-50 with RepMLP in its middle stages.

Ding et al. 2021, RepMLP, arXiv:2105.01883, section 4. The size of the maps is fixed by the image's,
and so are the weights. Layout and parameter names are the authors', but every stage may have groups
of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from torch import nn

from refold.algebra.geometry import Size
from refold.blocks.partition import pair
from refold.errors import InputError
from refold.models.backbone import Backbone, Feature, strides
from refold.models.registry import register_model
from refold.models.repmlp_units import (
    Bottleneck,
    Perceptrons,
    RepMLPBottleneck,
    RepMLPLight,
    normed,
)

_WIDTHS = (64, 128, 256, 512)
_REDUCTIONS = {2: 2, 3: 2, 4: 4, 5: 4}
_LARGEST_PARTITION = 10
_KERNELS = (1, 3, 5, 7)


class RepMLPResNet(Backbone):
    """ResNet whose stages hold RepMLP in every block but their first.

    Stages are counted from 2 as the paper's c2 to c5. What is given by stage is one value for all
    or one for each of `stages`.

    Args:
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        deploy: build the plain form.
        img_size: of the image, int or (height, width): the weights fit this size only.
        stages: which stages hold RepMLP.
        groups: of RepMLP, by stage.
        reductions: of the channels around RepMLP, by stage; the paper's where None.
        fc_reductions: of the global layers, by stage.
        partition: of the maps; None for the largest up to 10 that divides the maps of all `stages`.
        kernels: of the convolutions; where None, odd ones up to 7 that leave a border.
        light: the block without 3x3 convolutions, at half the width.
        depths: blocks of each stage.
        width: factor of all channels.
        rates: dilation of each stage's 3x3 convolutions.
        stage_strides: how each stage reduces its maps.

    Raises:
        InputError: when no partition divides the maps, or a list does not fit `stages`.

    Examples:
        >>> net = RepMLPResNet(10, img_size=64, width=0.25, kernels=(1, 3), deploy=True)
        >>> net.stage3[1].btnk_repmlp.grid.parts
        (1, 1)

    Source: arXiv:2105.01883, section 4.2 and Table 3.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        deploy: bool = False,
        *,
        img_size: Size = 224,
        stages: Sequence[int] = (3, 4),
        groups: int | Sequence[int] = 8,
        reductions: int | Sequence[int] | None = None,
        fc_reductions: int | Sequence[int] = 1,
        partition: Size | None = None,
        kernels: Sequence[Size] | None = None,
        light: bool = False,
        depths: Sequence[int] = (3, 4, 6, 3),
        width: float = 1.0,
        rates: Sequence[int] = (1, 1, 1, 1),
        stage_strides: Sequence[int] = (1, 2, 2, 2),
    ) -> None:
        size = pair(img_size, "img_size")
        super().__init__(num_classes, in_chans, size)
        sizes = _map_sizes(size, stage_strides)
        chosen = each(reductions or [_REDUCTIONS.get(s, 1) for s in stages], stages, "reductions")
        by_stage = (each(groups, stages, "groups"), chosen, each(fc_reductions, stages, "fc"))
        part = _partition([sizes[s] for s in stages]) if partition is None else partition
        kernels = _fitting(pair(part, "partition")) if kernels is None else kernels
        mlps = {
            stage: Perceptrons(sizes[stage], part, g, kernels, r, f, deploy)
            for stage, g, r, f in zip(stages, *by_stage, strict=True)
        }
        stem = int(_WIDTHS[0] * width)
        self.stage0 = nn.Sequential(
            normed(in_chans, stem, 7, 2, deploy=deploy), nn.MaxPool2d(3, 2, 1)
        )
        features, channels, reduction = [Feature("stage0.0", stem, 2)], stem, 4
        rows = zip((2, 3, 4, 5), depths, _WIDTHS, stage_strides, rates, strict=True)
        for stage, depth, full, stride, rate in rows:
            inner, stack = int(full * width), nn.Sequential()
            for at, step in enumerate(strides(depth, stride)):
                mlp, where = mlps.get(stage), (channels, inner, 4 * inner)
                plain = at == 0 or mlp is None
                block = Bottleneck(*where, step, rate, deploy=deploy) if plain else None
                stack.append(block or _with_repmlp(where, mlp, light))
                channels = 4 * inner
            reduction *= stride
            self.add_module(f"stage{stage - 1}", stack)
            features.append(Feature(f"stage{stage - 1}", channels, reduction))
        names = [feature.module for feature in features]
        self._finish(features, [names[0], "stage0.1", *names[1:]])


def _with_repmlp(
    where: tuple[int, int, int], settings: Perceptrons | None, light: bool
) -> nn.Module:
    assert settings is not None
    channels, inner, out = where
    if light:
        return RepMLPLight(channels, inner // 2, out, settings)
    return RepMLPBottleneck(channels, inner, out, settings)


def each(value: int | Sequence[int], stages: Sequence[int], name: str) -> Sequence[int]:
    """Return one value for each stage.

    Raises:
        InputError: when there are neither one nor as many as stages.
    """
    values = [value] * len(stages) if isinstance(value, int) else list(value)
    if len(values) != len(stages) or not set(stages) <= {2, 3, 4, 5}:
        raise InputError(
            f"{name} {value} must be one number or one for each of stages {tuple(stages)}, which "
            "are among 2, 3, 4, 5"
        )
    return values


def _map_sizes(image: tuple[int, int], steps: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Return the size of each stage's maps."""
    height, width = (ceil(ceil(side / 2) / 2) for side in image)
    sizes: dict[int, tuple[int, int]] = {}
    for stage, step in zip((2, 3, 4, 5), steps, strict=True):
        height, width = ceil(height / step), ceil(width / step)
        sizes[stage] = (height, width)
    return sizes


def _partition(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the largest partition that divides all maps.

    Raises:
        InputError: when only single pixels do.
    """
    possible = range(_LARGEST_PARTITION, 0, -1)
    axes = zip(*sizes, strict=True)
    found = [next(n for n in possible if not any(m % n for m in axis)) for axis in axes]
    if not found:
        return 1, 1
    if min(found) < 3:
        raise InputError(
            f"no partition of 3 to {_LARGEST_PARTITION} divides the maps {list(sizes)}: give "
            "partition, and the maps are padded, or another img_size"
        )
    return found[0], found[1]


def _fitting(partition: tuple[int, int]) -> list[int]:
    """Return the kernels that leave a border in the partition: 1, 3, 5 in 7 and also 7 in 10."""
    return [kernel for kernel in _KERNELS if kernel == 1 or kernel < min(partition) - 1]


register_model("repmlp_resnet50")(RepMLPResNet)
register_model("repmlp_resnet50_light", light=True, groups=4)(RepMLPResNet)
