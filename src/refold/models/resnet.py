"""ResNet whose 3x3 convolutions train as branches, as the authors of ACNet and DBB trained it.

He et al. 2016, Deep Residual Learning for Image Recognition, arXiv:1512.03385. Layout and parameter
names are those of the DBB repository: the stride of a bottleneck is on its 3x3. RepVGG-18 and -34,
which RMNet's article compares with ResNets of their depth, have RepVGG's blocks in its place.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from refold.blocks.layers import chain
from refold.errors import InputError
from refold.models.backbone import Backbone, Trunk
from refold.models.registry import register_model
from refold.models.repvgg import repvgg_block
from refold.models.units import Form, Units

_WIDTHS = (64, 128, 256, 512)


class Residual(nn.Module):
    """relu(convolutions(x) + shortcut(x)): two 3x3, or a 3x3 between two 1x1.

    Args:
        units: makes the convolutions.
        channels: of the input.
        width: of the inner convolutions.
        stride: of the block.
        bottleneck: whether it has the 1x1 convolutions; it then returns four times its width.
    """

    def __init__(
        self, units: Units, channels: int, width: int, stride: int, bottleneck: bool
    ) -> None:
        super().__init__()
        out = width * (4 if bottleneck else 1)
        reshaped = stride != 1 or channels != out
        self.shortcut = units(channels, out, 1, stride, act=False) if reshaped else nn.Identity()
        if bottleneck:
            self.conv1 = units(channels, width, 1)
            self.conv2 = units(width, width, 3, stride, 1)
            self.conv3 = units(width, out, 1, act=False)
        else:
            self.conv1 = units(channels, width, 3, stride, 1)
            self.conv2 = units(width, width, 3, 1, 1, act=False)
            self.conv3 = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's value."""
        y = self.conv2(self.conv1(x))
        y = y if self.conv3 is None else self.conv3(y)
        return (y + self.shortcut(x)).relu()


class ResNet(Backbone):
    """ResNet for ImageNet.

    Args:
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        deploy: build the plain form.
        form: what the 3x3 convolutions train as.
        depths: blocks of each stage.
        bottleneck: whether the blocks have 1x1 convolutions.
        plain: whether two of RepVGG's blocks replace each block.
        width: factor of all channels.

    Raises:
        InputError: when bottlenecks are asked for in a plain network.

    Examples:
        >>> net = ResNet(10, form="dbb", depths=(1, 1, 1, 1), deploy=True)
        >>> [name for name in net.state_dict() if "stage1" in name][:1]
        ['stage1.0.conv1.dbb_reparam.weight']
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        deploy: bool = False,
        *,
        form: Form = "plain",
        depths: Sequence[int] = (2, 2, 2, 2),
        bottleneck: bool = False,
        plain: bool = False,
        width: float = 1.0,
    ) -> None:
        if plain and bottleneck:
            raise InputError("plain ResNets have no bottlenecks; leave bottleneck or plain out")
        super().__init__(num_classes, in_chans)
        units, widths = Units(form, deploy), [int(full * width) for full in _WIDTHS]
        stem, growth, trunk = widths[0], 4 if bottleneck else 1, Trunk(self, in_chans)
        self.stage0 = chain(conv1=units(in_chans, stem, 7, 2, 3), maxpool=nn.MaxPool2d(3, 2, 1))
        trunk.map("stage0.conv1", stem, 2)
        trunk.run("stage0.maxpool", stride=2)
        for stage, (depth, inner) in enumerate(zip(depths, widths, strict=True), 1):
            blocks = trunk.stage(f"stage{stage}", depth, inner * growth, 1 if stage == 1 else 2)
            for channels, stride in blocks:
                if plain:
                    trunk.append(repvgg_block(channels, inner, stride, deploy))
                    trunk.append(repvgg_block(inner, inner, 1, deploy))
                else:
                    trunk.append(Residual(units, channels, inner, stride, bottleneck))
        trunk.finish()


for _prefix, _form in (("acnet", "acb"), ("dbb", "dbb")):
    register_model(f"{_prefix}_resnet18", form=_form)(ResNet)
    register_model(
        f"{_prefix}_resnet50", form=_form, depths=(3, 4, 6, 3), bottleneck=True
    )(ResNet)  # fmt: skip
register_model("repvgg_18", plain=True)(ResNet)
register_model("repvgg_34", plain=True, depths=(3, 4, 6, 3))(ResNet)
