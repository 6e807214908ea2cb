"""Face embedders: a ResNet for small faces, and the same with RepMLP in four of its blocks.

Ding et al. 2021, RepMLP, arXiv:2105.01883, section 4.4. They give embeddings; the losses they train
with hold the classes (`refold.models.AMSoftmax`, `refold.models.ArcFace`).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from refold.algebra.geometry import Size
from refold.errors import InputError
from refold.models.backbone import Backbone, Trunk, make_classifier
from refold.models.registry import register_model
from refold.models.repmlp_units import Bottleneck, Perceptrons, RepMLPBottleneck, normed

_STEM = 64


class FaceResNet(Backbone):
    """A ResNet for 96-pixel faces whose 3x3 convolutions are as wide as its blocks.

    Args:
        num_classes: outputs of a classifier of the embedding's direction; 0 for the embedding
            itself.
        in_chans: channels of the image.
        deploy: build the plain form.
        repmlp: how many blocks at the end of each stage hold RepMLP.
        embedding: numbers that stand for a face.
        img_size: of the image; a multiple of 32, and of 48 with RepMLP.
        depths: blocks of each stage.
        width: factor of all channels.
        partition: of RepMLP's maps.
        groups: of RepMLP.
        reduction: of the channels around RepMLP.
        kernels: of RepMLP's convolutions.

    Raises:
        InputError: when a stage has fewer blocks than are to hold RepMLP, or its maps are smaller
            than the partition.

    Examples:
        >>> net = FaceResNet(0, width=0.125, embedding=32)
        >>> import torch
        >>> net.eval()(torch.zeros(2, 3, 96, 96)).shape
        torch.Size([2, 32])
    """

    def __init__(
        self,
        num_classes: int = 0,
        in_chans: int = 3,
        deploy: bool = False,
        *,
        repmlp: Sequence[int] = (0, 0, 0, 0),
        embedding: int = 512,
        img_size: int = 96,
        depths: Sequence[int] = (3, 2, 2, 2),
        width: float = 1.0,
        partition: Size = 6,
        groups: int = 4,
        reduction: int = 2,
        kernels: Sequence[Size] = (1, 3, 5),
    ) -> None:
        super().__init__(num_classes, in_chans, (img_size, img_size))
        if img_size % 32 or any(held >= depth for held, depth in zip(repmlp, depths, strict=True)):
            raise InputError(
                f"img_size {img_size} must be a multiple of 32, and every stage of {tuple(depths)} "
                f"blocks keeps an ordinary one: repmlp {tuple(repmlp)} is too many"
            )
        stem, size, trunk = int(_STEM * width), img_size // 4, Trunk(self, in_chans)
        self.stage0 = nn.Sequential(
            normed(in_chans, stem, 7, 2, deploy=deploy), nn.MaxPool2d(3, 2, 1)
        )
        trunk.map("stage0.0", stem, 2)
        trunk.run("stage0.1", stride=2)
        for stage, (depth, held) in enumerate(zip(depths, repmlp, strict=True), 1):
            out, first = int(64 * 2**stage * width), 1 if stage == 1 else 2
            size //= first
            mlp = Perceptrons(size, partition, groups, kernels, reduction, deploy=deploy)
            blocks = trunk.stage(f"stage{stage}", depth, out, first)
            for at, (channels, stride) in enumerate(blocks):
                if at >= depth - held:
                    trunk.append(RepMLPBottleneck(channels, out, out, mlp))
                else:
                    trunk.append(Bottleneck(channels, out, out, stride, deploy=deploy))
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.embedding = normed(trunk.channels, embedding, act=False, deploy=deploy)
        self.linear = make_classifier(embedding, num_classes)
        self._set_body(trunk.row, trunk.maps)

    head_names = ("gap", "embedding", "linear")

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the embedding of a feature map, or the logits of its direction."""
        face = self.embedding(self.gap(x)).flatten(1)
        if pre_logits or isinstance(self.linear, nn.Identity):
            return face
        return self.linear(F.normalize(face))


register_model("faceresnet")(FaceResNet)
register_model("repmlp_faceresnet", repmlp=(2, 1, 1, 0))(FaceResNet)
