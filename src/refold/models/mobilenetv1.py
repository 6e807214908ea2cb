"""MobileNetV1: depthwise and pointwise convolutions in turn.

Howard et al. 2017, MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
Applications, arXiv:1704.04861. Parameter names are those of the DBB repository.
"""

from __future__ import annotations

from torch import nn

from refold.blocks.layers import chain
from refold.errors import InputError
from refold.models.backbone import Backbone, Trunk
from refold.models.registry import register_model
from refold.models.units import Form, Units

_ROWS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
    *[(512, 1)] * 5, (1024, 2), (1024, 1),
)  # fmt: skip
"""Channels and stride of each pair."""


class MobileNetV1(Backbone):
    """MobileNetV1.

    Args:
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        deploy: build the plain form.
        form: what the 3x3 convolutions train as.
        width: the paper's alpha, the factor of all channels.
        resolution: the paper's rho, the factor of the 224 pixels that images have; any multiple of
            32 pixels works, and this only states which one is meant.

    Raises:
        InputError: when `resolution` does not give a multiple of 32 pixels.

    Examples:
        >>> net = MobileNetV1(10, form="acb", width=0.25, deploy=True)
        >>> list(net.state_dict())[2:5:2]
        ['stem.0.depthwise.fused_conv.weight', 'stem.0.pointwise.conv.weight']

    Source: arXiv:1704.04861, table 1.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        deploy: bool = False,
        *,
        form: Form = "plain",
        width: float = 1.0,
        resolution: float = 1.0,
    ) -> None:
        super().__init__(num_classes, in_chans, (_side(resolution), _side(resolution)))
        units, first, trunk = Units(form, deploy), int(32 * width), Trunk(self, in_chans)
        self.conv1 = units(in_chans, first, 3, 2, 1)
        trunk.map("conv1", first, 2)
        self.stem = nn.Sequential()
        for full, stride in _ROWS:
            channels, out = trunk.channels, int(full * width)
            pair = chain(
                depthwise=units(channels, channels, 3, stride, 1, channels),
                pointwise=units(channels, out, 1),
            )
            self.stem.append(pair)
            trunk.map(f"stem.{len(self.stem) - 1}", out, stride)
        trunk.finish()


def _side(resolution: float) -> int:
    """Return the pixels of an image's side."""
    side = round(224 * resolution)
    if side < 32 or side % 32 or abs(side - 224 * resolution) > 0.5:
        raise InputError(
            f"resolution {resolution} gives images of {224 * resolution:g} pixels; give a positive "
            "multiple of 1/7, such as 6/7 for 192 pixels"
        )
    return side


for _width in (1.0, 0.75, 0.5, 0.25):
    for _pixels in (224, 192, 160, 128):
        _suffix = "" if _width == 1 else f"_{_width * 100:03.0f}"
        register_model(
            f"mobilenetv1{_suffix}" + ("" if _pixels == 224 else f"_{_pixels}"),
            width=_width, resolution=_pixels / 224,
        )(MobileNetV1)  # fmt: skip
register_model("acnet_mobilenetv1", form="acb")(MobileNetV1)
register_model("dbb_mobilenetv1", form="dbb")(MobileNetV1)
