"""ResNeXt in the three forms that its article shows to be one function.

Xie et al. 2017, Aggregated Residual Transformations for Deep Neural Networks, arXiv:1611.05431.
Parameter names of the grouped form are torchvision's, whose weights load as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from refold.blocks.layers import chain
from refold.errors import InputError
from refold.models.backbone import Backbone, Trunk
from refold.models.registry import register_model

Form = Literal["grouped", "concat", "paths"]
"""The article's forms (c), (b) and (a)."""

FORMS: tuple[Form, ...] = ("grouped", "concat", "paths")


def _conv_norm(
    channels: int, out: int, kernel: int, stride: int, groups: int, number: int
) -> dict[str, nn.Module]:
    conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return {f"conv{number}": conv, f"bn{number}": nn.BatchNorm2d(out)}


def _inner(channels: int, width: int, stride: int, groups: int = 1) -> dict[str, nn.Module]:
    """Return the 1x1 and the 3x3 of a block, or of one of its paths."""
    return {
        **_conv_norm(channels, width, 1, 1, 1, 1), "relu1": nn.ReLU(),
        **_conv_norm(width, width, 3, stride, groups, 2), "relu2": nn.ReLU(),
    }  # fmt: skip


class _Aggregated(nn.Module):
    """relu(transform(x) + shortcut(x)); a subclass writes the transform."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        reshaped = stride != 1 or channels != out
        self.downsample = (
            nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
            if reshaped
            else None
        )

    def transform(self, x: Tensor) -> Tensor:
        """Return what is added to the shortcut."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's value."""
        shortcut = x if self.downsample is None else self.downsample(x)
        return (self.transform(x) + shortcut).relu()


class GroupedBlock(_Aggregated):
    """Form (c): a grouped 3x3 between two 1x1.

    Args:
        channels: of the input.
        width: channels of one path.
        cardinality: how many paths there are.
        out: channels of the output.
        stride: of the 3x3.

    Shape:
        (N, channels, H, W) -> (N, out, H / stride, W / stride).
    """

    def __init__(self, channels: int, width: int, cardinality: int, out: int, stride: int) -> None:
        super().__init__(channels, out, stride)
        inner = width * cardinality
        layers = _inner(channels, inner, stride, cardinality)
        layers |= _conv_norm(inner, out, 1, 1, 1, 3)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.row = tuple(layers)

    def transform(self, x: Tensor) -> Tensor:
        """Return the last norm's output."""
        for name in self.row:
            x = self.get_submodule(name)(x)
        return x


class ConcatBlock(_Aggregated):
    """Form (b): paths of a 1x1 and a 3x3, whose outputs one 1x1 reads together.

    Arguments and shape are those of `GroupedBlock`.
    """

    def __init__(self, channels: int, width: int, cardinality: int, out: int, stride: int) -> None:
        super().__init__(channels, out, stride)
        paths = (chain(**_inner(channels, width, stride)) for _ in range(cardinality))
        self.paths = nn.ModuleList(paths)
        self.conv3 = nn.Conv2d(width * cardinality, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)

    def transform(self, x: Tensor) -> Tensor:
        """Return the last norm's output."""
        return self.bn3(self.conv3(torch.cat([path(x) for path in self.paths], 1)))


class PathsBlock(_Aggregated):
    """Form (a): the sum of whole paths, each a 1x1, a 3x3 and a 1x1.

    Args:
        channels: of the input.
        width: channels of one path.
        cardinality: how many paths there are.
        out: channels of the output.
        stride: of the 3x3.
        path_norm: whether each path ends in a norm of its own, instead of one norm on the sum. In
            eval mode that is the same function; in training each path is then normalised.
    """

    def __init__(
        self, channels: int, width: int, cardinality: int, out: int, stride: int,
        *, path_norm: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(channels, out, stride)
        self.paths = nn.ModuleList()
        for _ in range(cardinality):
            last = _conv_norm(width, out, 1, 1, 1, 3)
            if not path_norm:
                del last["bn3"]
            self.paths.append(chain(**_inner(channels, width, stride), **last))
        self.bn3 = nn.Identity() if path_norm else nn.BatchNorm2d(out)

    def transform(self, x: Tensor) -> Tensor:
        """Return the sum of the paths, normed."""
        first, *others = self.paths
        total = first(x)
        for path in others:
            total = total + path(x)
        return self.bn3(total)


class ResNeXt(Backbone):
    """ResNeXt for ImageNet.

    Args:
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        form: which of the equivalent forms the blocks have: `paths` is the article's (a), `concat`
            its (b), `grouped` its (c).
        depths: blocks of each stage.
        cardinality: paths of a block.
        path_width: channels of one path in the first stage; each further stage has twice as many.
        path_norm: see `PathsBlock`; for `paths` alone.
        base: channels of the first convolution; the stages return 4, 8, 16 and 32 times as many.

    Raises:
        InputError: when there is no such form, or `path_norm` is asked of another than `paths`.

    Examples:
        >>> net = ResNeXt(10, form="paths", depths=(1, 1, 1, 1), cardinality=2, base=8).eval()
        >>> net(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])

    Source: arXiv:1611.05431, table 1 and figure 3.
    """

    classifier_path = "fc"
    head_names = ("gap", "fc")

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        form: Form = "grouped",
        depths: Sequence[int] = (3, 4, 6, 3),
        cardinality: int = 32,
        path_width: int = 4,
        path_norm: bool = False,
        base: int = 64,
    ) -> None:
        super().__init__(num_classes, in_chans)
        if form not in FORMS or (path_norm and form != "paths"):
            raise InputError(
                f"form must be one of {', '.join(FORMS)}, and path_norm belongs to paths; got "
                f"{form!r}, path_norm={path_norm}"
            )
        self.conv1 = nn.Conv2d(in_chans, base, 7, 2, 3, bias=False)
        self.bn1, self.relu, self.maxpool = nn.BatchNorm2d(base), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        trunk = Trunk(self, in_chans)
        trunk.run("conv1", "bn1")
        trunk.map("relu", base, 2)
        trunk.run("maxpool", stride=2)
        for stage, depth in enumerate(depths):
            inner, out = path_width * 2**stage, 4 * base * 2**stage
            for channels, stride in trunk.stage(f"layer{stage + 1}", depth, out, 2 if stage else 1):
                where = (channels, inner, cardinality, out, stride)
                trunk.append(_block(form, where, path_norm))
        trunk.finish()


def _block(form: Form, where: tuple[int, int, int, int, int], path_norm: bool) -> nn.Module:
    if form == "paths":
        return PathsBlock(*where, path_norm=path_norm)
    return ConcatBlock(*where) if form == "concat" else GroupedBlock(*where)


register_model("resnext50_32x4d")(ResNeXt)
register_model("resnext50_32x4d_concat", form="concat")(ResNeXt)
register_model("resnext50_32x4d_paths", form="paths")(ResNeXt)
