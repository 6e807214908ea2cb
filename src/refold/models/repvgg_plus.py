"""RepVGGplus: a deeper RepVGG with squeeze-and-excite after the activation and auxiliary heads.

Of the authors of Ding et al. 2021, arXiv:2101.03697, in their repository (2022). Parameter names
follow their checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, cast

from torch import Tensor, nn

from refold.blocks.layers import chain
from refold.errors import InputError
from refold.models.backbone import Backbone, Trunk, make_classifier, strides
from refold.models.registry import register_model
from refold.models.repvgg import repvgg_block, scaled
from refold.models.units import ConvUnit

_WITH_HEAD = ("stage1", "stage2", "stage3_first")


class RepVGGPlus(Backbone):
    """RepVGGplus; in training mode it returns its logits and those of three auxiliary heads.

    The heads are for the loss alone: in eval mode, and built to deploy, it returns its own logits.

    Args:
        num_classes: outputs of the classifier; 0 for none, then without auxiliary heads.
        in_chans: channels of the image.
        deploy: build the plain form, without auxiliary heads.
        depths: blocks of each stage; the third stage is built in two halves.
        width: factors of 64, 128, 256 and 512 channels.
        aux: whether there are auxiliary heads.

    Raises:
        InputError: when the third stage has no two equal halves.

    Examples:
        >>> net = RepVGGPlus(10, depths=(1, 1, 2, 1), width=(0.25,) * 4)
        >>> import torch
        >>> x = torch.zeros(2, 3, 64, 64)
        >>> list(net(x)), net.eval()(x).shape
        (['main', 'stage1_aux', 'stage2_aux', 'stage3_first_aux'], torch.Size([2, 10]))
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        deploy: bool = False,
        *,
        depths: Sequence[int] = (8, 14, 24, 1),
        width: Sequence[float] = (2.5, 2.5, 2.5, 5),
        aux: bool = True,
    ) -> None:
        super().__init__(num_classes, in_chans)
        if depths[2] % 2:
            raise InputError(f"depths: the third stage is built in two halves, got {depths[2]}")
        first, second, third, last = scaled(width)
        half = depths[2] // 2
        rows = [
            ("stage1", depths[0], first, 2), ("stage2", depths[1], second, 2),
            ("stage3_first", half, third, 2), ("stage3_second", half, third, 1),
            ("stage4", depths[3], last, 2),
        ]  # fmt: skip
        trunk, stem = Trunk(self, in_chans), min(64, first)
        self.stage0 = repvgg_block(in_chans, stem, 2, deploy, se="after")
        trunk.map("stage0", stem, 2)
        for name, depth, out, stride in rows:
            stack = nn.Sequential()
            for step in strides(depth, stride):
                stack.append(repvgg_block(trunk.channels, out, step, deploy, se="after"))
                trunk.channels = out
            self.add_module(name, chain(blocks=stack))
            trunk.map(name, out, stride)
        trunk.finish()
        self.aux = _WITH_HEAD if aux and num_classes and not deploy else ()
        for name, _, out, _ in rows:
            if name in self.aux:
                self.add_module(f"{name}_aux", _head(out, num_classes))

    def forward(self, x: Tensor) -> Any:
        """Return logits; in training mode a dict of them, `main` and the auxiliary ones."""
        if self.features_only or not (self.training and self.aux):
            return super().forward(x)
        outputs: dict[str, Tensor] = {}
        for path in self.body:
            x = self.get_submodule(path)(x)
            if path in self.aux:
                outputs[f"{path}_aux"] = self.get_submodule(f"{path}_aux")(x)
        return {"main": self.forward_head(x), **outputs}

    def as_features(self, out_indices: int | Sequence[int] | None = None) -> Self:
        """Make it return feature maps, in place; see `Backbone.as_features`."""
        for name in self.aux:
            delattr(self, f"{name}_aux")
        self.aux = ()
        return super().as_features(out_indices)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifiers by fresh ones, in the auxiliary heads too."""
        super().reset_classifier(num_classes)
        for name in self.aux:
            head = cast(nn.Sequential, self.get_submodule(f"{name}_aux"))
            old = cast(nn.Linear, head[-1])
            head[-1] = make_classifier(old.in_features, num_classes).to(old.weight)


def _head(channels: int, num_classes: int) -> nn.Sequential:
    unit = ConvUnit(channels, channels, 3, 2, 1, activation=nn.ReLU)
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(unit, pool, nn.Flatten(), nn.Linear(channels, num_classes))


register_model("repvgg_plus_l2pse")(RepVGGPlus)
