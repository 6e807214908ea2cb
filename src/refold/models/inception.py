"""Inception v1 as the article draws it: naive, with reductions, and with its successor's changes.

Szegedy et al. 2015, Going Deeper with Convolutions, arXiv:1409.4842; norms as in Ioffe and Szegedy
2015, arXiv:1502.03167. `googlenet` is torchvision's, which has a 3x3 where the article has a 5x5.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from refold.blocks.layers import chain
from refold.errors import InputError
from refold.models.backbone import Backbone, Feature, make_classifier
from refold.models.registry import register_model
from refold.models.towers import Order, TowerMaker

Module = Literal["reduced", "naive", "factorised"]
MODULES: tuple[Module, ...] = ("reduced", "naive", "factorised")

_ROWS = {
    "3a": (64, 96, 128, 16, 32, 32), "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64), "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64), "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128), "5b": (384, 192, 384, 48, 128, 128),
}  # fmt: skip
"""Channels of the 1x1; the 3x3's reduction, the 3x3; the 5x5's reduction, the 5x5; the pool's."""

_ENDS = {"3b": "3", "4e": "4", "5b": "5"}
"""The module after which a stage ends."""


class Inception(Backbone):
    """GoogLeNet's trunk with norms, whose modules and whose halvings can be chosen.

    Args:
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        deploy: build the plain form.
        module: `reduced`, the article's; `naive`, without 1x1 before the large kernels, where the
            pools pass all channels on; `factorised`, with two 3x3 for each 5x5.
        reduction: None for the article's bare pools; else how v2's article would halve the maps,
            see `TowerMaker.reduction`; each then doubles the channels.
        width: factor of all channels.

    Raises:
        InputError: when there is no such module.

    Examples:
        >>> import torch
        >>> net = Inception(10, module="factorised", width=0.125).eval()
        >>> net(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])

    Source: arXiv:1409.4842, table 1; arXiv:1512.00567, sections 3 and 5.
    """

    head_names = ("gap", "drop", "linear")

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        deploy: bool = False,
        *,
        module: Module = "reduced",
        reduction: Order | None = None,
        width: float = 1.0,
    ) -> None:
        super().__init__(num_classes, in_chans)
        if module not in MODULES:
            raise InputError(f"module must be one of {', '.join(MODULES)}, got {module!r}")
        self.make, self.module, self.width = TowerMaker(deploy), module, width
        first, channels = int(64 * width), int(192 * width)
        self.stem = chain(
            conv1=self.make.conv(in_chans, first, 7, 2),
            maxpool1=nn.MaxPool2d(3, 2, ceil_mode=True),
            conv2=self.make.conv(first, first), conv3=self.make.conv(first, channels, 3),
            maxpool2=nn.MaxPool2d(3, 2, ceil_mode=True),
        )  # fmt: skip
        body = [f"stem.{name}" for name in self.stem._modules]
        features = [Feature("stem.conv1", first, 2), Feature("stem.conv3", channels, 4)]
        step = 8
        for name, row in _ROWS.items():
            layer, channels = self._module(channels, [int(full * width) for full in row])
            self.add_module(f"inception{name}", layer)
            body.append(f"inception{name}")
            if name in _ENDS:
                features.append(Feature(f"inception{name}", channels, step))
                step *= 2
            if name in _ENDS and step <= 32:
                layer, channels = self._halving(channels, reduction)
                self.add_module(f"reduction{_ENDS[name]}", layer)
                body.append(f"reduction{_ENDS[name]}")
        self.gap, self.drop = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.4)
        self.linear = make_classifier(channels, num_classes)
        self._set_body(body, features)

    def _module(self, channels: int, row: list[int]) -> tuple[nn.Module, int]:
        """Return a module and how many channels it returns."""
        a, _, c, _, e, f = row
        if self.module == "naive":
            return self.make.naive(channels, (a, c, e)), a + c + e + channels
        factorised = self.module == "factorised"
        return self.make.reduced(channels, row, factorised=factorised), a + c + e + f

    def _halving(self, channels: int, order: Order | None) -> tuple[nn.Module, int]:
        if order is None:
            return nn.MaxPool2d(3, 2, ceil_mode=True), channels
        return self.make.reduction(channels, 2 * channels, order), 2 * channels

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of a feature map, or what the classifier reads."""
        x = self.drop(self.gap(x).flatten(1))
        return x if pre_logits else self.linear(x)


for _module in MODULES:
    register_model("inceptionv1" + ("" if _module == "reduced" else f"_{_module}"), module=_module)(
        Inception
    )
for _order in ("pool_conv", "conv_pool", "parallel"):
    register_model(f"inceptionv1_{_order}", module="factorised", reduction=_order)(Inception)
