"""RepVGG: a VGG of 3x3 convolutions whose blocks train with a 1x1 and an identity beside each.

Ding et al. 2021, RepVGG: Making VGG-style ConvNets Great Again, arXiv:2101.03697. Parameter names
follow the authors' checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Literal

from torch import nn

from refold.blocks import RepVGGBlock
from refold.models.backbone import Backbone, Trunk
from refold.models.registry import register_model

WIDTHS = (64, 128, 256, 512)
"""Channels of the four stages at width 1."""


class RepVGG(Backbone):
    """RepVGG: one block with stride 2, then four stages that begin with one.

    Args:
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        deploy: build the plain form.
        depths: blocks of each stage.
        width: factors of 64, 128, 256 and 512 channels.
        groups: of every block at an even place, the first block's being 0; the others have one.
        se: whether squeeze-and-excite stands before each activation.

    Examples:
        >>> net = RepVGG(num_classes=10, depths=(1, 1, 1, 1), width=(0.25,) * 4, deploy=True)
        >>> [name for name in net.state_dict()][:2]
        ['stage0.rbr_reparam.weight', 'stage0.rbr_reparam.bias']

    Source: arXiv:2101.03697, table 2; RepVGG-D2se is of the authors' repository.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        deploy: bool = False,
        *,
        depths: Sequence[int] = (2, 4, 14, 1),
        width: Sequence[float] = (0.75, 0.75, 0.75, 2.5),
        groups: int = 1,
        se: bool = False,
    ) -> None:
        super().__init__(num_classes, in_chans)
        gate = "before" if se else None
        trunk, widths, places = Trunk(self, in_chans), scaled(width), count(1)
        first = min(64, widths[0])
        self.stage0 = repvgg_block(in_chans, first, 2, deploy, se=gate)
        trunk.map("stage0", first, 2)
        for stage, (depth, out) in enumerate(zip(depths, widths, strict=True), 1):
            for channels, stride in trunk.stage(f"stage{stage}", depth, out):
                own = 1 if next(places) % 2 else groups
                trunk.append(repvgg_block(channels, out, stride, deploy, groups=own, se=gate))
        trunk.finish()


def scaled(width: Sequence[float]) -> list[int]:
    """Return the channels of the stages.

    Examples:
        >>> scaled((0.75, 0.75, 0.75, 2.5))
        [48, 96, 192, 1280]
    """
    return [int(full * factor) for full, factor in zip(WIDTHS, width, strict=True)]


def repvgg_block(
    in_channels: int,
    out_channels: int,
    stride: int,
    deploy: bool,
    *,
    groups: int = 1,
    se: Literal["before", "after"] | None = None,
) -> nn.Module:
    """Return the block that all these networks consist of."""
    return RepVGGBlock(in_channels, out_channels, 3, stride, 1, 1, groups, se=se, deploy=deploy)


_A, _B = (2, 4, 14, 1), (4, 6, 16, 1)
_SIZES: dict[str, tuple[Sequence[int], float, float]] = {
    "a0": (_A, 0.75, 2.5), "a1": (_A, 1, 2.5), "a2": (_A, 1.5, 2.75),
    "b0": (_B, 1, 2.5), "b1": (_B, 2, 4), "b2": (_B, 2.5, 5), "b3": (_B, 3, 5),
    "d2se": ((8, 14, 24, 1), 2.5, 5),
}  # fmt: skip

for _name, (_depths, _a, _b) in _SIZES.items():
    for _groups in (1, 2, 4) if _name in ("b1", "b2", "b3") else (1,):
        register_model(
            f"repvgg_{_name}" + (f"g{_groups}" if _groups > 1 else ""),
            depths=_depths, width=(_a, _a, _a, _b), groups=_groups, se=_name == "d2se",
        )(RepVGG)  # fmt: skip
