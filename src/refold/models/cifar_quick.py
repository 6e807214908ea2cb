"""Cifar-quick: three 5x5 convolutions, whose branches ACNet was first tried on.

The network of the Caffe examples with norms, as the ACNet repository has it; parameter names are
those of that repository.
"""

from __future__ import annotations

from torch import Tensor, nn

from refold.models.backbone import Backbone, Feature, make_classifier
from refold.models.registry import register_model
from refold.models.units import Form, Units

_GAMMA = 1 / 3


class CifarQuick(Backbone):
    """Three 5x5 convolutions, each before a pool, and two linear layers, for 32 x 32 pixels.

    Args:
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        deploy: build the plain form.
        form: what the convolutions train as.
        gamma: where the norms of an "acb" form start to scale.

    Examples:
        >>> net = CifarQuick(10, form="acb", deploy=True)
        >>> list(net.state_dict())[:1]
        ['conv1.acb.fused_conv.weight']
    """

    classifier_path = "fc2"
    head_names = ("fc1", "fc2")

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        deploy: bool = False,
        *,
        form: Form = "plain",
        gamma: float = _GAMMA,
    ) -> None:
        super().__init__(num_classes, in_chans, (32, 32))
        units = Units(form, deploy, gamma, named=True)
        self.conv1, self.pool1 = units(in_chans, 32, 5, 1, 2), nn.MaxPool2d(3, 2)
        self.conv2, self.pool2 = units(32, 32, 5, 1, 2), nn.AvgPool2d(3, 2)
        self.conv3, self.pool3 = units(32, 64, 5, 1, 2), nn.AvgPool2d(3, 2)
        self.fc1 = nn.Linear(64 * 9, 64)
        self.fc2 = make_classifier(64, num_classes)
        rows = (("conv1", 32, 1), ("conv2", 32, 2), ("conv3", 64, 4), ("pool3", 64, 8))
        body = ("conv1", "pool1", "conv2", "pool2", "conv3", "pool3")
        self._set_body(body, [Feature(*row) for row in rows])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of a feature map, or what the classifier reads."""
        x = self.fc1(x.flatten(1)).relu()
        return x if pre_logits else self.fc2(x)


register_model("cifar_quick")(CifarQuick)
register_model("acnet_cifar_quick", form="acb")(CifarQuick)
register_model("dbb_cifar_quick", form="dbb")(CifarQuick)
