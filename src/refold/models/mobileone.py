"""MobileOne: depthwise and pointwise convolutions in turn, each trained as several branches.

Vasu et al. 2023, MobileOne: An Improved One millisecond Mobile Backbone, arXiv:2206.04040.
Parameter names follow the authors' checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refold.blocks import MobileOneBlock
from refold.models.backbone import Backbone, Trunk
from refold.models.registry import register_model

_WIDTHS = (64, 128, 256, 512)


class MobileOne(Backbone):
    """MobileOne: one block with stride 2, then four stages that begin with one.

    Args:
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        deploy: build the plain form.
        depths: pairs of depthwise and pointwise blocks of each stage.
        width: factors of 64, 128, 256 and 512 channels.
        num_conv_branches: convolutions of the full size in each block after the first.
        se_depths: how many pairs at the end of each stage have squeeze-and-excite.

    Examples:
        >>> net = MobileOne(num_classes=10, depths=(1, 1, 1, 1), width=(0.25,) * 4, deploy=True)
        >>> list(net.state_dict())[2:4]
        ['stage1.0.reparam_conv.weight', 'stage1.0.reparam_conv.bias']

    Source: arXiv:2206.04040, tables 2 and 3.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        deploy: bool = False,
        *,
        depths: Sequence[int] = (2, 8, 10, 1),
        width: Sequence[float] = (0.75, 1.0, 1.0, 2.0),
        num_conv_branches: int = 1,
        se_depths: Sequence[int] = (0, 0, 0, 0),
    ) -> None:
        super().__init__(num_classes, in_chans)
        widths = [int(full * factor) for full, factor in zip(_WIDTHS, width, strict=True)]
        trunk, first = Trunk(self, in_chans), min(64, widths[0])
        self.stage0 = MobileOneBlock(in_chans, first, 3, 2, 1, deploy=deploy)
        trunk.map("stage0", first, 2)
        for stage, (depth, out, gated) in enumerate(zip(depths, widths, se_depths, strict=True), 1):
            blocks = trunk.stage(f"stage{stage}", depth, out)
            for place, (channels, stride) in enumerate(blocks):
                se = place >= depth - gated
                options: dict[str, Any] = {
                    "num_conv_branches": num_conv_branches, "se": se, "deploy": deploy,
                }  # fmt: skip
                wide = (channels, channels, 3, stride, 1, 1, channels)
                trunk.append(MobileOneBlock(*wide, **options))
                trunk.append(MobileOneBlock(channels, out, 1, **options))
        trunk.finish()


register_model("mobileone_s0", width=(0.75, 1.0, 1.0, 2.0), num_conv_branches=4)(MobileOne)
register_model("mobileone_s1", width=(1.5, 1.5, 2.0, 2.5))(MobileOne)
register_model("mobileone_s2", width=(1.5, 2.0, 2.5, 4.0))(MobileOne)
register_model("mobileone_s3", width=(2.0, 2.5, 3.0, 4.0))(MobileOne)
register_model("mobileone_s4", width=(3.0, 3.5, 3.5, 4.0), se_depths=(0, 0, 5, 1))(MobileOne)
