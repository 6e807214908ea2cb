"""RMNeXt: inverted residuals with grouped 3x3 convolutions, cheap to turn into a plain chain.

Meng et al. 2021, RMNet: Equivalently Removing Residual Connection from Networks, arXiv:2111.00687.
Parameter names follow the authors' checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from refold.blocks import RMBlock
from refold.errors import InputError
from refold.models.backbone import Trunk, init_convs
from refold.models.registry import register_model
from refold.models.residual import LoggedResidual, Removable, conv_norm


class GroupedResidual(LoggedResidual):
    """1x1, grouped 3x3 and 1x1, each with its norm, beside an identity or a projection.

    Args:
        channels: of the input.
        out: channels of the output.
        stride: of the 3x3.
        width: channels of the 3x3; removing the residual adds `channels` to them.
        group: channels of each of its groups.
        statistics: see `Logged`.

    Raises:
        InputError: when the groups do not divide the channels.

    Shape:
        (N, channels, H, W) -> (N, out, H / stride, W / stride).
    """

    def __init__(
        self, channels: int, out: int, stride: int, width: int, group: int, statistics: bool
    ) -> None:
        super().__init__(channels, out, stride, statistics)
        if width % group:
            raise InputError(
                f"groups of {group} channels do not divide the {width} of a 3x3; give a `group` "
                f"that divides the width of the first stage times (expand - 1)"
            )
        self.conv1, self.bn1 = conv_norm(channels, width, 1)
        self.conv2, self.bn2 = conv_norm(width, width, 3, stride, width // group)
        self.conv3, self.bn3 = conv_norm(width, out, 1)

    def branch(self, x: Tensor) -> Tensor:
        """Return what is added to the shortcut."""
        x = self.relu(self.bn1(self.conv1(x)))
        return self.bn3(self.conv3(self.relu(self.bn2(self.conv2(x)))))


class RMNeXt(Removable):
    """RMNeXt: two RepVGG blocks, then four stages of grouped residuals.

    Args:
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        depths: blocks of each stage.
        expand: the 3x3 of a block has `expand - 1` times the block's channels, and the deploy form
            as many as `expand` times where a block keeps its shape.
        group: channels of a group in the first stage; later stages have 2, 4 and 8 times as many.
        width: channels of the first stage.
        large_stem: whether two blocks of stride 2 come first, as for ImageNet; else one of stride
            1, as for CIFAR.
        statistics: log statistics in training, see `Logged`.

    Raises:
        InputError: when `group` does not divide the channels.

    Examples:
        >>> import torch
        >>> net = RMNeXt(10, depths=(1, 1, 1, 1), expand=3, group=4, width=8).eval()
        >>> plain = net.deployed(torch.zeros(1, 3, 64, 64))
        >>> plain.layer2[0].conv2.in_channels, plain.layer2[0].conv2.groups
        (40, 5)

    Source: arXiv:2111.00687, section 4.4, and the authors' repository.
    """

    classifier_path = "fc"
    head_names = ("gap", "fc")

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: Sequence[int] = (3, 4, 6, 3),
        expand: int = 5,
        group: int = 32,
        width: int = 64,
        large_stem: bool = True,
        statistics: bool = False,
    ) -> None:
        super().__init__(num_classes, in_chans, (224, 224) if large_stem else (32, 32))
        stem, trunk = min(64, width), Trunk(self, in_chans)
        if large_stem:
            first = _stem_block(in_chans, stem, 2)
            self.layer0 = nn.Sequential(first, _stem_block(stem, stem, 2))
            trunk.map("layer0.0", stem, 2)
            trunk.run("layer0.1", stride=2)
        else:
            self.layer0 = _stem_block(in_chans, stem, 1)
            trunk.run("layer0")
        trunk.channels = stem
        for stage, depth in enumerate(depths):
            out, own = width * 2**stage, group * 2**stage
            blocks = trunk.stage(f"layer{stage + 1}", depth, out, 1 if stage == 0 else 2)
            for channels, stride in blocks:
                inner = out * (expand - 1)
                trunk.append(GroupedResidual(channels, out, stride, inner, own, statistics))
        trunk.finish()
        self.init_weights()

    def init_weights(self) -> None:
        """Start as the authors do: blocks as their shortcuts, convolutions normal."""
        init_convs(self)
        for module in self.modules():
            if isinstance(module, GroupedResidual):
                nn.init.zeros_(module.bn3.weight)


def _stem_block(channels: int, out: int, stride: int) -> nn.Module:
    return RMBlock(channels, out, 3, stride, 1, identity=False)


SIZES: dict[str, tuple[Sequence[int], int, int]] = {
    "26x3_32": ((2, 2, 2, 2), 3, 32), "41x5_16": ((2, 3, 5, 3), 5, 16),
    "50x5_32": ((3, 4, 6, 3), 5, 32), "50x6_32": ((3, 4, 6, 3), 6, 32),
    "101x6_16": ((3, 4, 23, 3), 6, 16), "152x6_32": ((3, 8, 36, 3), 6, 32),
}  # fmt: skip
"""Blocks of each stage, expansion, and channels of a group, by the name that says them."""

for _name, (_depths, _expand, _group) in SIZES.items():
    register_model(f"rmnext_{_name}", depths=_depths, expand=_expand, group=_group)(RMNeXt)
