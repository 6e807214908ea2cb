"""RepMLP: a fully connected layer on feature maps that trains with convolutions beside it.

Ding et al. 2021, RepMLP: Re-parameterizing Convolutions into Fully-connected Layers for Image
Recognition, arXiv:2105.01883, and its successor RepMLPNet (CVPR 2022, arXiv:2112.11081). Both train
with convolutions and ship linear layers alone. Unlike in the authors' conversion, in and out
channels may differ.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from math import isqrt
from typing import Any, cast

import torch
from torch import Tensor, nn

from refold.algebra.geometry import Size
from refold.blocks.layers import Maker, chain
from refold.blocks.partition import Grid, PartitionBlock, linear_of
from refold.checkpoint.families import State, register_family
from refold.checkpoint.names import is_repmlpnet
from refold.errors import GeometryError
from refold.graph import NEW_CONV


class RepMLPBlock(PartitionBlock):
    """Global, Partition and Local Perceptron; three linear layers when deployed.

    The map is cut into partitions. The Global Perceptron adds to each what two linear layers make
    of the normed averages of all (it is left out where the map is one partition). On each
    partition, FC3 (a grouped 1x1 over the flattened partition) and the convolutions are added; the
    latter pad with zeros at the partition's border, not at the map's.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        img_size: of the maps, int or (height, width).
        partition: size of a partition, int or (height, width); maps that it does not divide are
            padded below and to the right.
        groups: of FC3 and of the convolutions.
        kernels: of the convolutions, odd, int or (height, width).
        reduction: how many times narrower the two global layers are in between.
        global_perceptron: whether it has these layers.
        fc3_window: size of a convolution in FC3's place, an ablation of the paper; None for FC3.
        deploy: build the plain form.
        device: of the tensors.
        dtype: of the tensors.

    Shape:
        (N, in_channels, *img_size) -> (N, out_channels, *img_size).

    Raises:
        GeometryError: when a kernel does not fit the partition, groups do not divide the channels,
            or `reduction` is larger than what it reduces.

    Examples:
        >>> block = RepMLPBlock(4, 6, img_size=8, partition=(4, 2), groups=2, kernels=[1])
        >>> x = torch.randn(2, 4, 8, 8)
        >>> before = block.eval()(x)
        >>> torch.allclose(block.fuse()(x), before, atol=1e-5)
        True

    Source: arXiv:2105.01883, section 3.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        img_size: Size,
        partition: Size,
        groups: int = 1,
        kernels: Sequence[Size] = (1, 3, 5),
        reduction: int = 1,
        global_perceptron: bool = True,
        fc3_window: Size | None = None,
        deploy: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        grid, make = Grid.of(img_size, partition), Maker(device, dtype, deploy)
        channels = (in_channels, out_channels)
        super().__init__(
            grid, channels, groups, kernels, make, norm_on_map=False, window=fc3_window
        )
        self.is_global = global_perceptron and not grid.is_one
        if not self.is_global:
            return
        numbers = in_channels * grid.parts[0] * grid.parts[1]
        if not 1 <= reduction <= numbers:
            raise GeometryError(f"reduction {reduction} must be from 1 to {numbers}")
        pool = nn.AvgPool2d(grid.partition)
        self.avg = pool if deploy else chain(avg=pool, bn=make.norm(in_channels, 2))
        self.fc1_fc2 = chain(
            fc1=nn.Linear(numbers, numbers // reduction, **make.lasting),
            relu=nn.ReLU(),
            fc2=nn.Linear(numbers // reduction, numbers, **make.lasting),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's value."""
        whole = self.grid.padded(x, self.channels[0])
        parts = self.grid.cut(whole)
        if self.is_global:
            rows, columns = self.grid.parts
            summary = self.fc1_fc2(self.avg(whole).flatten(1))
            parts = parts + summary.reshape(-1, self.channels[0], rows, 1, columns, 1)
        value = self.perceive(self.grid.stack(parts, self.channels[0]))
        return value if self.grid.is_whole else self.grid.join(value, self.channels[1])

    def switch_to_deploy(self) -> None:
        """Become three linear layers: all convolutions and norms go into them.

        Raises:
            RefusedError: in training mode, or when a folded value does not fit the block's
                precision.
        """
        folds = not self.deploy
        super().switch_to_deploy()
        if folds and self.is_global:
            summary = self.fc1_fc2
            first = cast(nn.Linear, summary.fc1)
            (h, w), (rows, columns) = self.grid.partition, self.grid.parts
            example = first.weight.new_empty(1, self.channels[0], rows * h, columns * w)
            summary.fc1 = linear_of(nn.Sequential(self.avg, nn.Flatten(), first), example)
            self.avg = nn.AvgPool2d(self.grid.partition)


class RepMLPNetBlock(PartitionBlock):
    """FC3 shared by sets of channels, convolutions beside it, and a gate over all channels.

    The channels come in groups of `sets`; every such group is mixed by the same weights, set by set
    (FC3 and the depthwise convolutions have `sets` groups). The result is multiplied by a gate
    computed from the means of all channels.

    Args:
        channels: in and out.
        img_size: of the maps, int or (height, width).
        partition: size of a partition, int or (height, width); None for the whole map.
        sets: how many weight sets the channels share; divides `channels`.
        kernels: of the convolutions, odd, int or (height, width).
        reduction: how many times narrower the gate is in between.
        deploy: build the plain form.
        device: of the tensors.
        dtype: of the tensors.

    Shape:
        (N, channels, *img_size) -> the same.

    Raises:
        GeometryError: when a kernel does not fit the partition, or `sets` does not divide
            `channels`.

    Examples:
        >>> block = RepMLPNetBlock(8, img_size=4, sets=2)
        >>> x = torch.randn(2, 8, 4, 4)
        >>> before = block.eval()(x)
        >>> torch.allclose(block.fuse()(x), before, atol=1e-5)
        True

    Source: arXiv:2112.11081, section 3.
    """

    def __init__(
        self,
        channels: int,
        *,
        img_size: Size,
        partition: Size | None = None,
        sets: int = 1,
        kernels: Sequence[Size] = (1, 3),
        reduction: int = 4,
        deploy: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        grid = Grid.of(img_size, img_size if partition is None else partition)
        if sets < 1 or channels % sets:
            raise GeometryError(f"sets {sets} must divide channels {channels}")
        if not 1 <= reduction <= channels:
            raise GeometryError(f"reduction {reduction} must be from 1 to {channels}")
        make = Maker(device, dtype, deploy)
        super().__init__(grid, (sets, sets), sets, kernels, make, norm_on_map=True)
        self.width = channels
        narrow = channels // reduction
        self.gp = chain(
            fc1=nn.Conv2d(channels, narrow, 1, **make.lasting),
            relu=nn.ReLU(),
            fc2=nn.Conv2d(narrow, channels, 1, **make.lasting),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's value."""
        gate = self.gp(x.mean((2, 3), keepdim=True)).sigmoid()
        parts = self.grid.cut(self.grid.padded(x, self.width))
        value = self.perceive(self.grid.stack(parts, self.channels[0]))
        return self.grid.join(value, self.width) * gate


# -- published layouts ---------------------------------------------------------------------------
# The names are those of the authors' repository: its RepMLP (2021) and, at the same place since the
# end of that year, RepMLPNet (2022), whose own deploy form keeps all norms but FC3's.

_MAKE = Maker("cpu", torch.double)
_PART = re.compile(r"(^|\.)(repconv\d+(x\d+)?\.conv|fc1_fc2\.fc1|gp\.fc1)\.weight$")
_GLOBAL = re.compile(r"(^|\.)(fc1_fc2|repmlp_block\.gp)\.fc1\.weight$")
_FC3 = f"{NEW_CONV}.weight"  # what all spellings of `fc3.weight` have in common


class _Rows(PartitionBlock):
    """FC3, its norm and the convolutions beside it, on one partition."""

    def forward(self, stack: Tensor) -> Tensor:
        return self.perceive(stack)


def _rows_size(block: PartitionBlock) -> tuple[int, ...]:
    return block.channels[0], *block.grid.partition


def _is_repmlp(prefix: str, state: State) -> bool:
    """Say whether an `fc3` is RepMLP's: other networks have layers of that name."""
    return state[f"{prefix}fc3.weight"].ndim == 4 and any(map(_PART.search, state))


def _is_deployed(state: State) -> bool:
    """Say whether some `fc3` has a bias and no norm, as RepMLP's when deployed."""
    folded = [key[: -len("fc3.bias")] for key in state if re.search(r"(^|\.)fc3\.bias$", key)]
    names = [at for at in folded if f"{at}fc3_bn.weight" not in state]
    sizes = [state[f"{at}fc3.weight"].shape[2:] for at in names if f"{at}fc3.weight" in state]
    return (1, 1) in sizes or any(map(_GLOBAL.search, state))


@register_family(
    "RepMLP",
    "fc3.weight",
    "fc3_bn.running_mean",
    parts=r"fc3|fc3_bn|repconv\d+(x\d+)?",
    deploy="fc3",
    fits=_is_repmlp,
    deployed=_is_deployed,
    size=_rows_size,
    is_sized=True,
)
def _rows(state: State, partition: tuple[int, int] | None = None) -> nn.Module:
    """Return the block of some keys; any groups give the same matrix, so it has one.

    Args:
        state: its tensors.
        partition: size of its maps; a square where None.

    Raises:
        ValueError: when no partition fits the shapes.
    """
    fc3, norm = state[_FC3], state["fc3_bn.weight"]
    kernels = [t for key, t in state.items() if key.startswith("repconv") and t.ndim == 4]
    rows, columns = fc3.shape[:2]
    is_window = fc3.shape[2:].numel() > 1
    outputs = len(kernels[0]) if kernels else len(norm)
    positions = 1 if is_window else rows // outputs
    if partition is None:
        side = isqrt(positions)
        partition = (side, side)
        if is_window:  # its size plays no part, as long as the kernels fit
            side = max(max(kernel.shape[2:]) for kernel in [fc3, *kernels])
            partition, positions = (side, side), side * side
    elif is_window:
        positions = partition[0] * partition[1]
    if partition[0] * partition[1] != positions or (not is_window and columns % positions):
        raise ValueError(
            f"fc3 reads {columns} numbers a group and gives {rows} of {outputs} channels, which "
            f"do not fit maps of {partition}; load it into the network, which knows its partitions"
        )
    channels = (columns if is_window else columns // positions, outputs)
    on_map = len(norm) == outputs and (is_window or positions > 1)
    grid, sizes = Grid.of(partition, partition), [tuple(k.shape[2:]) for k in kernels]
    window = tuple(fc3.shape[2:]) if is_window else None
    return _Rows(grid, channels, 1, sizes, _MAKE, norm_on_map=on_map, window=window)


def _is_repmlpnet(prefix: str, state: State) -> bool:
    return is_repmlpnet(state)


def _summary_size(block: nn.Sequential) -> tuple[int, ...]:
    norm, first = (block.get_submodule(name) for name in ("avg.bn", "fc1_fc2.fc1"))
    channels = cast(nn.BatchNorm2d, norm).num_features
    return channels, cast(nn.Linear, first).in_features // channels, 1


@register_family(
    "RepMLP",
    "fc1_fc2.fc1.weight",
    "avg.bn.running_mean",
    parts=r"avg\.bn|fc1_fc2\.fc1",
    deploy="fc1_fc2.fc1",
    size=_summary_size,
)
def _summary(state: State) -> nn.Module:
    """Return the norm of the averages and the linear layer after it."""
    weight, channels = state["fc1_fc2.fc1.weight"], len(state["avg.bn.weight"])
    if weight.ndim != 2 or weight.shape[1] % channels:
        raise ValueError(f"fc1 {tuple(weight.shape)} does not read averages of {channels} channels")
    first = nn.Linear(weight.shape[1], weight.shape[0], **_MAKE.lasting)
    norm = chain(bn=_MAKE.norm(channels, 2))
    return chain(avg=norm, flat=nn.Flatten(), fc1_fc2=chain(fc1=first))


@register_family(
    "RepMLP",
    "ffn_block.ffn_fc1.conv.weight",
    "prebn2.running_mean",
    parts=r"prebn2|ffn_block\.ffn_fc1\.(conv|bn)",
    deploy="ffn_block.ffn_fc1.conv",
    fits=_is_repmlpnet,
    is_kept=True,
)
def _mixer(state: State) -> nn.Module:
    """Return the second norm of a RepMLPNet unit and the layer after it, normed or not."""
    kernel = state["ffn_block.ffn_fc1.conv.weight"]
    hidden, channels = kernel.shape[:2]
    conv = nn.Conv2d(
        channels, hidden, 1, bias="ffn_block.ffn_fc1.conv.bias" in state, **_MAKE.lasting
    )
    normed = "ffn_block.ffn_fc1.bn.weight" in state
    layer = chain(conv=conv, bn=_MAKE.norm(hidden, 2)) if normed else chain(conv=conv)
    return chain(prebn2=_MAKE.norm(channels, 2), ffn_block=chain(ffn_fc1=layer))


def _head_size(block: nn.Sequential) -> tuple[int, ...]:
    return (cast(nn.Linear, block.get_submodule("head")).in_features,)


@register_family(
    "RepMLP",
    "head.weight",
    "head_norm.running_mean",
    parts="head_norm|head",
    deploy="head",
    fits=_is_repmlpnet,
    size=_head_size,
    is_kept=True,
)
def _head(state: State) -> nn.Module:
    """Return the last norm and the classifier: the average between them changes neither."""
    classes, channels = state["head.weight"].shape
    head = nn.Linear(channels, classes, bias="head.bias" in state, **_MAKE.lasting)
    return nn.Sequential(OrderedDict(head_norm=_MAKE.norm(channels, 1), head=head))
