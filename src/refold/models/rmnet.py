"""RMNet: ResNets of basic blocks whose deploy form is a VGG.

Meng et al. 2021, RMNet: Equivalently Removing Residual Connection from Networks, arXiv:2111.00687.
Parameter names follow the authors' checkpoints, which are torchvision's but for `running1` and
`running2`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from refold.models.backbone import Trunk
from refold.models.registry import register_model
from refold.models.residual import LoggedResidual, Removable, conv_norm


class BasicResidual(LoggedResidual):
    """Two 3x3, each with its norm, beside an identity or a projection.

    Args:
        channels: of the input.
        out: channels of the output, and between the two.
        stride: of the first 3x3.
        statistics: see `Logged`.

    Shape:
        (N, channels, H, W) -> (N, out, H / stride, W / stride).
    """

    def __init__(self, channels: int, out: int, stride: int, statistics: bool) -> None:
        super().__init__(channels, out, stride, statistics)
        self.conv1, self.bn1 = conv_norm(channels, out, 3, stride)
        self.conv2, self.bn2 = conv_norm(out, out, 3)

    def branch(self, x: Tensor) -> Tensor:
        """Return what is added to the shortcut."""
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))


class RMNet(Removable):
    """A ResNet of basic blocks.

    Args:
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        depths: blocks of each stage.
        width: channels of the first stage; every later one has twice as many.
        large_stem: whether a 7x7 of stride 2 and a pool come first, as for ImageNet; else a 3x3, as
            for CIFAR.
        statistics: log statistics in training, see `Logged`.

    Examples:
        >>> import torch
        >>> net = RMNet(10, depths=(1, 1), width=4, large_stem=False).eval()
        >>> net.deployed(torch.zeros(1, 3, 32, 32)).layer2[0].conv1
        Conv2d(4, 12, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))

    Source: arXiv:2111.00687, section 3; ResNet is arXiv:1512.03385's.
    """

    classifier_path = "fc"
    head_names = ("gap", "fc")

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: Sequence[int] = (2, 2, 2, 2),
        width: int = 64,
        large_stem: bool = True,
        statistics: bool = False,
    ) -> None:
        super().__init__(num_classes, in_chans, (224, 224) if large_stem else (32, 32))
        kernel, step = (7, 2) if large_stem else (3, 1)
        self.conv1, self.bn1 = conv_norm(in_chans, width, kernel, step)
        self.relu, trunk = nn.ReLU(), Trunk(self, width)
        trunk.run("conv1", "bn1")
        if large_stem:
            trunk.map("relu", width, 2)
            self.maxpool = nn.MaxPool2d(3, 2, 1)
            trunk.run("maxpool", stride=2)
        else:
            trunk.run("relu")
        for stage, depth in enumerate(depths):
            out = width * 2**stage
            blocks = trunk.stage(f"layer{stage + 1}", depth, out, 1 if stage == 0 else 2)
            for channels, stride in blocks:
                trunk.append(BasicResidual(channels, out, stride, statistics))
        trunk.finish()


register_model("rmnet18", depths=(2, 2, 2, 2))(RMNet)
register_model("rmnet34", depths=(3, 4, 6, 3))(RMNet)
for _depth in (20, 32, 44, 56, 110, 1202):
    register_model(
        f"rmnet{_depth}", depths=((_depth - 2) // 6,) * 3, width=16, large_stem=False
    )(RMNet)  # fmt: skip
