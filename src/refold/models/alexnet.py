"""AlexNet with norms, whose convolutions train as branches.

Krizhevsky 2014, One weird trick for parallelizing convolutional neural networks, arXiv:1404.5997,
for the widths; the norms and the parameter names are those of the DBB repository.
"""

from __future__ import annotations

from torch import Tensor, nn

from refold.blocks.layers import chain
from refold.models.backbone import Backbone, Feature, make_classifier
from refold.models.registry import register_model
from refold.models.units import Form, Units

_CHANNELS = (64, 192, 384, 384, 256)


class AlexNet(Backbone):
    """Five convolutions with norms and three linear layers, for images of 224 x 224 pixels.

    Args:
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        deploy: build the plain form.
        form: what the 5x5 and 3x3 convolutions train as.
        hidden: channels of the two linear layers before the classifier.

    Examples:
        >>> net = AlexNet(10, form="acb", hidden=8, deploy=True)
        >>> [name for name in net.state_dict() if name.endswith("weight")][:2]
        ['stem.conv1.conv.weight', 'stem.conv2.fused_conv.weight']
    """

    classifier_path = "linear3"
    head_names = ("linear1", "relu1", "drop1", "linear2", "relu2", "drop2", "linear3")

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        deploy: bool = False,
        *,
        form: Form = "plain",
        hidden: int = 4096,
    ) -> None:
        super().__init__(num_classes, in_chans)
        units, (a, b, c, d, e) = Units(form, deploy), _CHANNELS
        self.stem = chain(
            conv1=units(in_chans, a, 11, 4, 2), maxpool1=nn.MaxPool2d(3, 2),
            conv2=units(a, b, 5, 1, 2), maxpool2=nn.MaxPool2d(3, 2),
            conv3=units(b, c, 3, 1, 1), conv4=units(c, d, 3, 1, 1), conv5=units(d, e, 3, 1, 1),
            maxpool3=nn.MaxPool2d(3, 2),
        )  # fmt: skip
        self.linear1, self.relu1, self.drop1 = nn.Linear(e * 36, hidden), nn.ReLU(), nn.Dropout(0.5)
        self.linear2, self.relu2, self.drop2 = nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(0.5)
        self.linear3 = make_classifier(hidden, num_classes)
        rows = (("conv1", a, 4), ("conv2", b, 8), ("conv5", e, 16), ("maxpool3", e, 32))
        features = [Feature(f"stem.{name}", width, step) for name, width, step in rows]
        self._set_body([f"stem.{name}" for name in self.stem._modules], features)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of a feature map, or what the classifier reads."""
        x = self.drop1(self.relu1(self.linear1(x.flatten(1))))
        x = self.drop2(self.relu2(self.linear2(x)))
        return x if pre_logits else self.linear3(x)


register_model("acnet_alexnet", form="acb")(AlexNet)
register_model("dbb_alexnet", form="dbb")(AlexNet)
