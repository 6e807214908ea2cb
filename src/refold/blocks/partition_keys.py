"""RepMLP's layers in checkpoints: how keys tell them, and what each folds to.

The names are those of the authors' repository: its RepMLP (2021) and, at the same place since the
end of that year, RepMLPNet (2022), whose own deploy form keeps all norms but FC3's.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from math import isqrt
from typing import cast

import torch
from torch import Tensor, nn

from refold.blocks.layers import Maker, chain
from refold.blocks.partition import Grid, PartitionBlock
from refold.checkpoint.families import Family, register_family
from refold.checkpoint.names import is_repmlpnet

State = Mapping[str, Tensor]

_MAKE = Maker("cpu", torch.double)
_PART = re.compile(r"(^|\.)(repconv\d+(x\d+)?\.conv|fc1_fc2\.fc1|gp\.fc1)\.weight$")
_GLOBAL = re.compile(r"(^|\.)(fc1_fc2|repmlp_block\.gp)\.fc1\.weight$")
_FC3 = "reparam_conv.weight"  # what all spellings of `fc3.weight` have in common


class _Rows(PartitionBlock):
    """FC3, its norm and the convolutions beside it, on one partition."""

    def forward(self, stack: Tensor) -> Tensor:
        return self.perceive(stack)


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
            f"are no maps of {partition}; load it into the network, which knows its partitions"
        )
    channels = (columns if is_window else columns // positions, outputs)
    on_map = len(norm) == outputs and (is_window or positions > 1)
    grid, sizes = Grid.of(partition, partition), [tuple(k.shape[2:]) for k in kernels]
    window = tuple(fc3.shape[2:]) if is_window else None
    return _Rows(grid, channels, 1, sizes, _MAKE, norm_on_map=on_map, window=window)


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


def _summary(state: State) -> nn.Module:
    """Return the norm of the averages and the linear layer after it."""
    weight, channels = state["fc1_fc2.fc1.weight"], len(state["avg.bn.weight"])
    if weight.ndim != 2 or weight.shape[1] % channels:
        raise ValueError(f"fc1 {tuple(weight.shape)} does not read averages of {channels} channels")
    first = nn.Linear(weight.shape[1], weight.shape[0], **_MAKE.lasting)
    norm = chain(bn=_MAKE.norm(channels, 2))
    return chain(avg=norm, flat=nn.Flatten(), fc1_fc2=chain(fc1=first))


def _summary_size(block: nn.Sequential) -> tuple[int, ...]:
    norm, first = (block.get_submodule(name) for name in ("avg.bn", "fc1_fc2.fc1"))
    channels = cast(nn.BatchNorm2d, norm).num_features
    return channels, cast(nn.Linear, first).in_features // channels, 1


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


def _head(state: State) -> nn.Module:
    """Return the last norm and the classifier: the average between them changes neither."""
    classes, channels = state["head.weight"].shape
    head = nn.Linear(channels, classes, bias="head.bias" in state, **_MAKE.lasting)
    return nn.Sequential(OrderedDict(head_norm=_MAKE.norm(channels, 1), head=head))


def _head_size(block: nn.Sequential) -> tuple[int, ...]:
    return (cast(nn.Linear, block.get_submodule("head")).in_features,)


def _is_repmlpnet(prefix: str, state: State) -> bool:
    return is_repmlpnet(state)


register_family(
    Family(
        "RepMLP",
        ("fc3.weight", "fc3_bn.running_mean"),
        r"fc3|fc3_bn|repconv\d+(x\d+)?",
        "fc3",
        _rows,
        fits=_is_repmlp,
        deployed=_is_deployed,
        size=_rows_size,
        is_sized=True,
    )
)
register_family(
    Family(
        "RepMLP",
        ("fc1_fc2.fc1.weight", "avg.bn.running_mean"),
        r"avg\.bn|fc1_fc2\.fc1",
        "fc1_fc2.fc1",
        _summary,
        size=_summary_size,
    )
)
register_family(
    Family(
        "RepMLP",
        ("ffn_block.ffn_fc1.conv.weight", "prebn2.running_mean"),
        r"prebn2|ffn_block\.ffn_fc1\.(conv|bn)",
        "ffn_block.ffn_fc1.conv",
        _mixer,
        fits=_is_repmlpnet,
        is_kept=True,
    )
)
register_family(
    Family(
        "RepMLP",
        ("head.weight", "head_norm.running_mean"),
        "head_norm|head",
        "head",
        _head,
        fits=_is_repmlpnet,
        size=_head_size,
        is_kept=True,
    )
)
