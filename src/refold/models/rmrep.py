"""RMRep: RepVGG whose blocks may pass channels on unchanged, and the networks it is compared with.

Meng et al. 2021, RMNet: Equivalently Removing Residual Connection from Networks, arXiv:2111.00687,
section 4.3: plain networks of 21 to 133 convolutions, with RepVGG's blocks, with blocks that
reserve channels, or as ResNets. Parameter names follow the authors' checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from torch import nn

from refold.blocks import RMBlock
from refold.errors import InputError
from refold.models.backbone import Backbone, Trunk
from refold.models.registry import register_model
from refold.models.resnet import Residual
from refold.models.units import Units


class Stage(NamedTuple):
    """Layers of one width.

    Args:
        width: channels.
        leads: strides of the single layers that come first.
        pairs: how many pairs of layers follow.
    """

    width: int
    leads: Sequence[int]
    pairs: int


class PairNet(Backbone):
    """Stages of single layers and pairs of them, then a linear classifier.

    Args:
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        single: makes a layer of (channels, out, stride).
        pair: makes two layers that keep the channels and the shape, in one module or in two.
        stages: of the network; the first one is the stem.
        large_stem: whether the stem is that of the stages, as for ImageNet; else it is one layer of
            stride 1, as for CIFAR.
        width: factor of all channels.
    """

    classifier_path = "fc"
    head_names = ("gap", "fc")

    def __init__(
        self,
        num_classes: int,
        in_chans: int,
        single: Callable[[int, int, int], nn.Module],
        pair: Callable[[int], Sequence[nn.Module]],
        stages: Sequence[Stage],
        large_stem: bool,
        width: float,
    ) -> None:
        super().__init__(num_classes, in_chans, (224, 224) if large_stem else (32, 32))
        self.feature = nn.Sequential()
        trunk = Trunk(self, in_chans)
        for place, (full, leads, pairs) in enumerate(stages):
            for stride in leads if place or large_stem else (1,):
                out = int(full * width)
                layer = single(trunk.channels, out, stride)
                trunk.map(f"feature.{len(self.feature)}", out, stride)
                self.feature.append(layer)
            for _ in range(pairs):
                for layer in pair(trunk.channels):
                    trunk.map(f"feature.{len(self.feature)}", trunk.channels)
                    self.feature.append(layer)
        trunk.finish()


def pair_stages(pairs: int, widths: Sequence[int] = (64, 128, 256, 512)) -> tuple[Stage, ...]:
    """Return a stem of two layers, and stages of so many pairs, all but the first led by a stride.

    Examples:
        >>> [sum(len(stage.leads) + 2 * stage.pairs for stage in pair_stages(n)) for n in (2, 16)]
        [21, 133]
    """
    first, *others = widths
    stem, body = Stage(first, (2, 2), 0), Stage(first, (), pairs)
    return (stem, body, *(Stage(width, (2,), pairs) for width in others))


class RMRep(PairNet):
    """RepVGG in whose every other block some channels are reserved: only handed on.

    The plain form multiplies more than the training form where channels are reserved, so that
    `reparameterize` makes it when told `allow_growth=True`.

    Args:
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        deploy: build the plain form.
        stages: of the network.
        ratio: share of the channels that such a block reserves; 0 makes it a RepVGG.
        se: whether blocks have squeeze-and-excite, which reserved channels pass.
        large_stem: whether the stem is that of the stages, else one layer of stride 1.
        width: factor of all channels.

    Raises:
        InputError: when `ratio` would leave no channels.

    Examples:
        >>> net = RMRep(10, stages=pair_stages(1, (8, 16)), ratio=0.5)
        >>> [block.reserved for block in net.feature]
        [0, 0, 4, 0, 0, 8, 0]

    Source: arXiv:2111.00687, section 4.3, and the authors' repository.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        deploy: bool = False,
        *,
        stages: Sequence[Stage] = pair_stages(2),
        ratio: float = 0.25,
        se: bool = False,
        large_stem: bool = True,
        width: float = 1.0,
    ) -> None:
        if not 0 <= ratio < 1:
            raise InputError(f"ratio must be at least 0 and less than 1, got {ratio}")
        single = partial(_rm_block, se=se, deploy=deploy)

        def pair(channels: int) -> Sequence[nn.Module]:
            first = single(channels, channels, 1, reserved=int(channels * ratio))
            return first, single(channels, channels, 1)

        super().__init__(num_classes, in_chans, single, pair, stages, large_stem, width)


def _rm_block(
    channels: int, out: int, stride: int, reserved: int = 0, *, se: bool, deploy: bool
) -> nn.Module:
    return RMBlock(channels, out, 3, stride, 1, reserved=reserved, se=se, deploy=deploy)


class PairResNet(PairNet):
    """The ResNet of RMRep's depth and widths: a residual for each pair.

    Args:
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        deploy: build the form without norms; the residuals stay.
        stages: of the network.
        large_stem: whether the stem is that of the stages, else one layer of stride 1.
        width: factor of all channels.

    Examples:
        >>> net = PairResNet(10, stages=pair_stages(1, (8, 16)))
        >>> [type(layer).__name__ for layer in net.feature]
        ['ConvUnit', 'ConvUnit', 'Residual', 'ConvUnit', 'Residual']
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        deploy: bool = False,
        *,
        stages: Sequence[Stage] = pair_stages(2),
        large_stem: bool = True,
        width: float = 1.0,
    ) -> None:
        units = Units(deploy=deploy)

        def single(channels: int, out: int, stride: int) -> nn.Module:
            return units(channels, out, 3, stride, 1)

        def pair(channels: int) -> Sequence[nn.Module]:
            return [Residual(units, channels, channels, 1, False)]

        super().__init__(num_classes, in_chans, single, pair, stages, large_stem, width)


_RATIOS = {21: 0.25, 37: 0.25, 69: 0.5, 133: 0.75}
_GATED = (
    Stage(64, (2,), 0), Stage(160, (2, 1), 1), Stage(320, (2, 1), 2), Stage(640, (2, 1), 7),
    Stage(2560, (2,), 0),
)  # fmt: skip
"""The widths and depths of RepVGG-B2, in the order of the authors' network with gates."""

for _depth, _ratio in _RATIOS.items():
    _stages = pair_stages((_depth - 5) // 8)
    register_model(f"rmrep_{_depth}", stages=_stages, ratio=_ratio)(RMRep)
    register_model(f"repvgg_{_depth}", stages=_stages, ratio=0.0)(RMRep)
    register_model(f"resnet_{_depth}", stages=_stages)(PairResNet)
register_model("rmrepse", stages=_GATED, ratio=0.5, se=True)(RMRep)
