"""The pure-MLP network for CIFAR-10, its counterpart of 3x3 convolutions, and its ablations.

Ding et al. 2021, RepMLP, arXiv:2105.01883, section 4.1. Two mixers a stage, each followed by a
linear layer over the channels, give the published 52.8 and 65.1 million multiply-adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from torch import nn

from refold.algebra.geometry import Size
from refold.blocks import RepMLPBlock
from refold.blocks.layers import chain
from refold.errors import InputError
from refold.models.backbone import Backbone, Feature
from refold.models.registry import register_model
from refold.models.repmlp_units import normed

Mixer = Literal["repmlp", "no_local", "no_global", "conv9_fc3", "conv9", "conv3"]
"""What mixes positions: RepMLP; it without convolutions; without global layers; with a 9x9
convolution in FC3's place; a 9x9 convolution, or a 3x3, in RepMLP's place."""

_PARTITION = 8


class RepMLPCifar(Backbone):
    """Three stages of mixers and linear layers on 32, 16 and 8 pixels, with max pools between.

    Args:
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        deploy: build the plain form.
        mixer: what mixes positions.
        widths: channels of each stage; a stage's last linear layer gives the next one's.
        depth: mixers a stage.
        groups: of RepMLP.
        kernels: of RepMLP's convolutions.
        img_size: of the image; a multiple of 32.

    Raises:
        InputError: when there is no such mixer, or `img_size` is not a multiple of 32.

    Examples:
        >>> net = RepMLPCifar(10, widths=(4, 8, 8))
        >>> [type(part).__name__ for part in net.stage1]
        ['Sequential', 'ConvUnit', 'Sequential', 'ConvUnit']

    Source: arXiv:2105.01883, Figure 3 and Table 1; the figure's number of mixers is told by the
    multiply-adds.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        deploy: bool = False,
        *,
        mixer: Mixer = "repmlp",
        widths: Sequence[int] = (16, 32, 64),
        depth: int = 2,
        groups: int = 2,
        kernels: Sequence[Size] = (1, 3, 5),
        img_size: int = 32,
    ) -> None:
        if mixer not in get_args(Mixer):
            raise InputError(f"mixer must be one of {', '.join(get_args(Mixer))}, got {mixer!r}")
        if img_size % 32 or img_size < 32:
            raise InputError(f"img_size {img_size} must be a multiple of 32")
        super().__init__(num_classes, in_chans, (img_size, img_size))
        self.stem = normed(in_chans, widths[0], act=False, deploy=deploy)
        body, features = ["stem"], list[Feature]()
        for at, channels in enumerate(widths):
            stage, size = nn.Sequential(), img_size >> at
            for step in range(depth):
                wider = step == depth - 1 and at + 1 < len(widths)
                out = widths[at + 1] if wider else channels
                if mixer in ("conv9", "conv3"):
                    mixed: nn.Module = normed(channels, channels, int(mixer[-1]), deploy=deploy)
                else:
                    block = _repmlp(mixer, channels, size, groups, kernels, deploy)
                    mixed = chain(repmlp=block, relu=nn.ReLU())
                stage.append(mixed).append(normed(channels, out, act=False, deploy=deploy))
            name = f"stage{at + 1}"
            self.add_module(name, stage)
            features.append(Feature(name, widths[min(at + 1, len(widths) - 1)], 2**at))
            body.append(name)
            if at + 1 < len(widths):
                self.add_module(f"pool{at + 1}", nn.MaxPool2d(2))
                body.append(f"pool{at + 1}")
        self._finish(features, body)


def _repmlp(
    mixer: Mixer, channels: int, size: int, groups: int, kernels: Sequence[Size], deploy: bool
) -> RepMLPBlock:
    return RepMLPBlock(
        channels,
        channels,
        img_size=size,
        partition=_PARTITION,
        groups=groups,
        kernels=() if mixer == "no_local" else kernels,
        global_perceptron=mixer != "no_global",
        fc3_window=9 if mixer == "conv9_fc3" else None,
        deploy=deploy,
    )


register_model("repmlp_cifar10")(RepMLPCifar)
register_model("wide_convnet_cifar10", mixer="conv3", widths=(32, 64, 128))(RepMLPCifar)
