"""VGG for CIFAR, with norms, whose convolutions train as branches.

Simonyan and Zisserman 2015, Very Deep Convolutional Networks for Large-Scale Image Recognition,
arXiv:1409.1556, for the convolutions; the norms, the head for CIFAR and the parameter names are
those of the ACNet repository.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from torch import Tensor, nn

from refold.models.backbone import Backbone, Feature, make_classifier
from refold.models.registry import register_model
from refold.models.units import Form, Units

_WIDTHS = (64, 128, 256, 512, 512)
_GAMMA = 1 / 3


class CifarVGG(Backbone):
    """Stages of 3x3 convolutions and two linear layers, for images of 32 x 32 pixels.

    Args:
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        deploy: build the plain form.
        form: what the convolutions train as.
        gamma: where the norms of an "acb" form start to scale.
        depths: convolutions of each stage; VGG-16's as they are.
        width: factor of the convolutions' channels.

    Examples:
        >>> net = CifarVGG(10, form="acb", deploy=True)
        >>> list(net.state_dict())[:1]
        ['stem.conv1.acb.fused_conv.weight']
    """

    classifier_path = "linear2"
    head_names = ("linear1", "linear2")

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        deploy: bool = False,
        *,
        form: Form = "plain",
        gamma: float = _GAMMA,
        depths: Sequence[int] = (2, 2, 3, 3, 3),
        width: float = 1.0,
    ) -> None:
        super().__init__(num_classes, in_chans, (32, 32))
        units, channels = Units(form, deploy, gamma, named=True), in_chans
        self.stem = nn.Sequential()
        features, numbers = list[Feature](), count(1)
        for stage, (depth, full) in enumerate(zip(depths, _WIDTHS, strict=True), 1):
            out = int(full * width)
            for _ in range(depth):
                self.stem.add_module(f"conv{next(numbers)}", units(channels, out, 3, 1, 1))
                channels = out
            *_, last = self.stem._modules
            features.append(Feature(f"stem.{last}", channels, 2 ** (stage - 1)))
            self.stem.add_module(f"maxpool{stage}", nn.MaxPool2d(2))
        features.append(Feature("stem.maxpool5", channels, 32))
        self.linear1 = nn.Linear(channels, 512)
        self.linear2 = make_classifier(512, num_classes)
        self._set_body([f"stem.{name}" for name in self.stem._modules], features)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of a feature map, or what the classifier reads."""
        x = self.linear1(x.flatten(1)).relu()
        return x if pre_logits else self.linear2(x)


register_model("cifar_vgg11", depths=(1, 1, 2, 2, 2))(CifarVGG)
register_model("cifar_vgg13", depths=(2, 2, 2, 2, 2))(CifarVGG)
register_model("cifar_vgg16")(CifarVGG)
register_model("cifar_vgg19", depths=(2, 2, 4, 4, 4))(CifarVGG)
register_model("acnet_vgg16", form="acb")(CifarVGG)
register_model("dbb_vgg16", form="dbb")(CifarVGG)
