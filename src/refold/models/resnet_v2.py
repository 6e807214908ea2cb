"""Residual networks with every activation order and every shortcut of ResNet v2's article.

He et al. 2016, Identity Mappings in Deep Residual Networks, arXiv:1603.05027; the networks for
CIFAR are those of He et al. 2016, arXiv:1512.03385, section 4.2, whose own order is `original`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from refold.blocks.layers import chain
from refold.errors import InputError
from refold.models.backbone import Backbone, Trunk, init_convs
from refold.models.registry import register_model
from refold.models.shortcuts import AddShortcut, Kind, PadShortcut, Shortcuts

Order = Literal["original", "bn_after_add", "relu_before_add", "relu_only", "full"]
"""Where norms and activations stand; the last two are pre-activation."""

_STEPS: dict[Order, tuple[str, str, str]] = {
    "original": ("cnr", "cn", "r"),
    "bn_after_add": ("cnr", "c", "nr"),
    "relu_before_add": ("cnr", "cnr", ""),
    "relu_only": ("rcn", "rcn", ""),
    "full": ("nrc", "nrc", ""),
}
"""What stands around each convolution of a branch, around its last one, and after the addition."""


@dataclass(frozen=True)
class Conv:
    """A convolution of a branch."""

    channels: int
    out: int
    kernel: int
    stride: int = 1


def _layers(step: str, conv: Conv, number: int) -> dict[str, nn.Module]:
    """Return the layers of a step, such as "nrc": norm, ReLU, convolution."""
    made: dict[str, nn.Module] = {}
    for letter in step:
        if letter == "c":
            made[f"conv{number}"] = nn.Conv2d(
                conv.channels, conv.out, conv.kernel, conv.stride, conv.kernel // 2, bias=False
            )
        elif letter == "n":
            reads = conv.out if "c" in step[: step.index("n")] else conv.channels
            made[f"norm{number}"] = nn.BatchNorm2d(reads)
        else:
            made[f"relu{number}"] = nn.ReLU()
    return made


@dataclass(frozen=True)
class UnitMaker:
    """Makes the units of one network.

    Args:
        order: where norms and activations stand.
        bottleneck: whether a 3x3 stands between two 1x1, instead of two 3x3.
        shortcuts: makes the shortcuts of units that keep the shape.
        padded: whether the others have no parameters (see `PadShortcut`), instead of a 1x1.

    Raises:
        InputError: when there is no such order.
    """

    order: Order = "full"
    bottleneck: bool = False
    shortcuts: Shortcuts = field(default_factory=Shortcuts)
    padded: bool = False

    def __post_init__(self) -> None:
        if self.order not in _STEPS:
            raise InputError(f"order must be one of {', '.join(_STEPS)}, got {self.order!r}")

    @property
    def expansion(self) -> int:
        """Channels that a unit returns for each of its width."""
        return 4 if self.bottleneck else 1

    def convs(self, channels: int, width: int, stride: int) -> list[Conv]:
        """Return the convolutions of a unit's branch: the first one has the stride."""
        if not self.bottleneck:
            return [Conv(channels, width, 3, stride), Conv(width, width, 3)]
        return [Conv(channels, width, 1, stride), Conv(width, width, 3), Conv(width, 4 * width, 1)]

    def projection(self, channels: int, out: int, stride: int) -> nn.Module:
        """Return a 1x1 shortcut: with a norm where the branch ends in one, bare otherwise."""
        conv = nn.Conv2d(channels, out, 1, stride, bias=False)
        if self.order in ("full", "bn_after_add"):
            return conv
        return chain(conv=conv, norm=nn.BatchNorm2d(out))

    def join(self, channels: int, out: int, stride: int) -> nn.Module:
        """Return what adds a unit's shortcut to its branch."""
        if stride == 1 and channels == out:
            return self.shortcuts(out, lambda: self.projection(out, out, 1))
        if self.padded:
            return AddShortcut(PadShortcut(out - channels, stride))
        return AddShortcut(self.projection(channels, out, stride))


class ResidualUnit(nn.Module):
    """after(join(y, branch(y))) with y = before(x).

    A pre-activation that both the branch and a projection read stands in `before`.

    Args:
        make: says what the unit is made of.
        channels: of the input.
        width: of the inner convolutions.
        stride: of the unit.
        first: whether it follows the stem, whose activation is its pre-activation.

    Shape:
        (N, channels, H, W) -> (N, width or 4 width, H / stride, W / stride).

    Examples:
        >>> unit = ResidualUnit(UnitMaker("full"), 8, 8, 1)
        >>> list(unit.branch._modules)
        ['norm1', 'relu1', 'conv1', 'norm2', 'relu2', 'conv2']

    Source: arXiv:1603.05027, figure 4.
    """

    def __init__(
        self, make: UnitMaker, channels: int, width: int, stride: int, *, first: bool = False
    ) -> None:
        super().__init__()
        convs, out = make.convs(channels, width, stride), width * make.expansion
        inner, last, after = _STEPS[make.order]
        layers: dict[str, nn.Module] = {}
        for number, conv in enumerate(convs, 1):
            layers |= _layers(last if number == len(convs) else inner, conv, number)
        leading = [name for name in list(layers)[:2] if not name.startswith("conv")]
        leading = leading if inner[0] != "c" else []
        lead = {name: layers[name] for name in leading}
        shared = bool(lead) and (first or stride != 1 or channels != out)
        if shared:
            layers = {name: layer for name, layer in layers.items() if name not in lead}
        self.before = chain(**lead) if shared and not first else nn.Identity()
        self.branch = chain(**layers)
        self.join = make.join(channels, out, stride)
        self.after = chain(**_layers(after, Conv(out, out, 1), 0)) if after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's value."""
        x = self.before(x)
        return self.after(self.join(x, self.branch(x)))


class ResNetV2(Backbone):
    """A residual network in the order and with the shortcuts that are asked for.

    Args:
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        depths: units of each stage.
        widths: of each stage's inner convolutions.
        bottleneck: whether units have a 3x3 between two 1x1, instead of two 3x3.
        large_stem: whether a 7x7 of stride 2 and a pool come first, as for ImageNet.
        order: where norms and activations stand.
        shortcut: of the units that keep the shape.
        scales: of a constant shortcut and of its branch.
        gate_bias: where the gates' biases start.
        dropout: share of the shortcut's values that a dropout shortcut drops.
        padded: whether the shortcuts that change the shape have no parameters.

    Raises:
        InputError: when there is no such order or shortcut.

    Examples:
        >>> import torch
        >>> net = ResNetV2(10, depths=(1, 1), widths=(8, 16), order="relu_only").eval()
        >>> net(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])

    Source: arXiv:1603.05027, sections 3 and 4.
    """

    head_names = ("gap", "linear")

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: Sequence[int] = (18, 18, 18),
        widths: Sequence[int] = (16, 32, 64),
        bottleneck: bool = False,
        large_stem: bool = False,
        order: Order = "full",
        shortcut: Kind = "identity",
        scales: tuple[float, float] = (0.5, 0.5),
        gate_bias: float = -6.0,
        dropout: float = 0.5,
        padded: bool = False,
    ) -> None:
        super().__init__(num_classes, in_chans, (224, 224) if large_stem else (32, 32))
        shortcuts = Shortcuts(shortcut, scales, gate_bias, dropout)
        make = UnitMaker(order, bottleneck, shortcuts, padded)
        self.stem = _stem(in_chans, widths[0], large_stem)
        trunk = Trunk(self, widths[0])
        if large_stem:
            trunk.run("stem.conv", "stem.norm")
            trunk.map("stem.relu", widths[0], 2)
            trunk.run("stem.maxpool", stride=2)
        else:
            trunk.run("stem.conv", "stem.norm", "stem.relu")
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), 1):
            out, stride = width * make.expansion, 1 if stage == 1 else 2
            units = trunk.stage(f"stage{stage}", depth, out, stride)
            for place, (channels, step) in enumerate(units):
                first = stage == 1 and place == 0
                trunk.append(ResidualUnit(make, channels, width, step, first=first))
        lead = _STEPS[order][0].partition("c")[0]
        if lead:  # what the next unit would have begun with
            last = trunk.channels
            self.final = chain(**_layers(lead, Conv(last, last, 1), 0))
            trunk.map("final", last)
        trunk.finish()
        self.init_weights()

    def init_weights(self) -> None:
        """Start as the article does: normal, of variance 2 / (kernel area x output channels)."""
        init_convs(self)


def _stem(in_chans: int, channels: int, large: bool) -> nn.Sequential:
    """Return the stem; its activation is the first unit's pre-activation where there is one."""
    kernel, stride, padding = (7, 2, 3) if large else (3, 1, 1)
    conv = nn.Conv2d(in_chans, channels, kernel, stride, padding, bias=False)
    layers = chain(conv=conv, norm=nn.BatchNorm2d(channels), relu=nn.ReLU())
    if large:
        layers.add_module("maxpool", nn.MaxPool2d(3, 2, 1))
    return layers


register_model("preact_resnet110", depths=(18, 18, 18))(ResNetV2)
register_model("preact_resnet164", depths=(18, 18, 18), bottleneck=True)(ResNetV2)
register_model("preact_resnet1001", depths=(111, 111, 111), bottleneck=True)(ResNetV2)
register_model(
    "resnetv2_200", depths=(3, 24, 36, 3), widths=(64, 128, 256, 512), bottleneck=True,
    large_stem=True,
)(ResNetV2)  # fmt: skip
for _depth in (20, 32, 44, 56, 110, 1202):
    _units = ((_depth - 2) // 6,) * 3
    register_model(f"cifar_resnet{_depth}", depths=_units, order="original", padded=True)(ResNetV2)
