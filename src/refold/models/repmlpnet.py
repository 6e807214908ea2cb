"""RepMLPNet: a network of linear layers alone once it is folded.

Ding et al. 2022, RepMLPNet: Hierarchical Vision MLP with Re-parameterized Locality, CVPR,
arXiv:2112.11081. Layout and parameter names are the authors'. Folded, each unit keeps one norm: the
one whose value both the gate and the partitions read.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from refold.algebra.geometry import Size
from refold.blocks import RepMLPNetBlock
from refold.blocks.layers import chain
from refold.blocks.partition import pair
from refold.errors import InputError
from refold.models.backbone import Backbone, Feature
from refold.models.registry import register_model
from refold.models.units import ConvUnit

_TINY = (64, 128, 256, 512)
_BASE = (96, 192, 384, 768)
_DEEP = (80, 160, 320, 640)


class RepMLPNetUnit(nn.Module):
    """x + block(norm(x)), then x + ffn(norm(x)).

    Args:
        block: mixes positions.
        expansion: of the channels in between the two layers that mix channels.
        deploy: build the plain form.

    Examples:
        >>> import torch
        >>> unit = RepMLPNetUnit(RepMLPNetBlock(8, img_size=4, sets=2), 4)
        >>> unit(torch.randn(2, 8, 4, 4)).shape
        torch.Size([2, 8, 4, 4])
    """

    def __init__(self, block: RepMLPNetBlock, expansion: int, *, deploy: bool = False) -> None:
        super().__init__()
        channels, hidden = block.width, block.width * expansion
        self.prebn1 = nn.BatchNorm2d(channels)
        self.repmlp_block = block
        self.prebn2 = nn.Identity() if deploy else nn.BatchNorm2d(channels)
        self.ffn_block = chain(
            ffn_fc1=ConvUnit(channels, hidden, 1, deploy=deploy),
            act=nn.GELU(),
            ffn_fc2=ConvUnit(hidden, channels, 1, deploy=deploy),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's value."""
        x = x + self.repmlp_block(self.prebn1(x))
        return x + self.ffn_block(self.prebn2(x))


class RepMLPNet(Backbone):
    """Four stages of RepMLPNet units, each stage on maps of one size.

    Args:
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        deploy: build the plain form.
        img_size: of the image, int or (height, width); the weights of another size's network fit
            where the partitions are the same.
        widths: channels of each stage.
        depths: units of each stage.
        partitions: of each stage's maps, which they must divide; None for the whole map.
        sets: how many weight sets the channels of each stage share.
        kernels: of the convolutions.
        reduction: of the gates.
        expansion: of the layers that mix channels.

    Raises:
        InputError: when `img_size` is not a multiple of 32, or a partition does not divide a map.

    Examples:
        >>> import torch
        >>> net = RepMLPNet(10, img_size=96, widths=(8, 16, 16, 128), depths=(1, 1, 1, 1))
        >>> net(torch.randn(2, 3, 96, 96)).shape
        torch.Size([2, 10])
    """

    classifier_path = "head"
    head_names = ("head_norm", "gap", "head")

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        deploy: bool = False,
        *,
        img_size: Size = 224,
        widths: Sequence[int] = _TINY,
        depths: Sequence[int] = (2, 2, 6, 2),
        partitions: Sequence[Size] | None = None,
        sets: Sequence[int] = (1, 4, 16, 128),
        kernels: Sequence[Size] = (1, 3),
        reduction: int = 4,
        expansion: int = 4,
    ) -> None:
        size = pair(img_size, "img_size")
        super().__init__(num_classes, in_chans, size)
        maps = [(size[0] // step, size[1] // step) for step in (4, 8, 16, 32)]
        parts = maps if partitions is None else [pair(p, "partitions") for p in partitions]
        _check(size, maps, parts)
        self.conv_embedding = ConvUnit(in_chans, widths[0], 4, 4, activation=nn.ReLU, deploy=deploy)
        self.stages, self.embeds = nn.ModuleList(), nn.ModuleList()
        body, features = ["conv_embedding"], list[Feature]()
        for i, (channels, depth) in enumerate(zip(widths, depths, strict=True)):
            stage = nn.Sequential()
            for _ in range(depth):
                block = RepMLPNetBlock(
                    channels, img_size=maps[i], partition=parts[i], sets=sets[i],
                    kernels=kernels, reduction=reduction, deploy=deploy,
                )  # fmt: skip
                stage.append(RepMLPNetUnit(block, expansion, deploy=deploy))
            self.stages.append(stage)
            features.append(Feature(f"stages.{i}", channels, 4 * 2**i))
            body.append(f"stages.{i}")
            if i + 1 < len(widths):
                down = ConvUnit(channels, widths[i + 1], 2, 2, activation=nn.ReLU, deploy=deploy)
                self.embeds.append(down)
                body.append(f"embeds.{i}")
        folds = deploy and num_classes > 0  # without a classifier nothing takes the norm in
        self.head_norm = nn.Identity() if folds else nn.BatchNorm2d(widths[-1])
        self._finish(features, body)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of a feature map, or what the classifier reads."""
        return super().forward_head(self.head_norm(x), pre_logits)


def _check(
    size: tuple[int, int], maps: Sequence[tuple[int, int]], parts: Sequence[tuple[int, int]]
) -> None:
    if size[0] % 32 or size[1] % 32:
        raise InputError(f"img_size {size} must be a multiple of 32 on both axes")
    for (height, width), (h, w) in zip(maps, parts, strict=True):
        if height % h or width % w:
            raise InputError(
                f"the partition {(h, w)} does not divide the {(height, width)} map of a "
                f"{size} image: give partitions, or an img_size that is a multiple of the "
                "network's own"
            )


def _register(
    name: str, side: int, widths: Sequence[int], depths: Sequence[int], sets: Sequence[int]
) -> None:
    partitions = tuple(side // step for step in (4, 8, 16, 32))
    options = {"img_size": side, "widths": widths, "depths": depths, "sets": sets}
    register_model(name, **options, partitions=partitions)(RepMLPNet)


_register("repmlpnet_t224", 224, _TINY, (2, 2, 6, 2), (1, 4, 16, 128))
_register("repmlpnet_b224", 224, _BASE, (2, 2, 12, 2), (1, 4, 32, 128))
_register("repmlpnet_t256", 256, _TINY, (2, 2, 6, 2), (1, 4, 16, 128))
_register("repmlpnet_b256", 256, _BASE, (2, 2, 12, 2), (1, 4, 32, 128))
_register("repmlpnet_d256", 256, _DEEP, (2, 2, 18, 2), (1, 4, 16, 128))
_register("repmlpnet_l256", 256, _BASE, (2, 2, 18, 2), (1, 4, 32, 256))
