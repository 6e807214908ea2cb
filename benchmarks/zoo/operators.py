"""The operators of one call of a network, by kind, as torch.export writes them down."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn

_ALIKE = {
    "reshape": "view _unsafe_view reshape flatten unflatten squeeze unsqueeze view_as reshape_as",
    "transpose": "transpose permute t movedim swapaxes numpy_T",
    "add": "add sub rsub",
    "mul": "mul div neg true_divide",
    "linear": "linear matmul mm addmm bmm einsum",
    "conv": "conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d",
    "cat": "cat concat stack hstack",
    "slice": "slice select narrow index_select split split_with_sizes chunk unbind tensor_split",
    "pool": "avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d mean max_pool2d",
    "norm": "batch_norm _native_batch_norm_legit_no_training",
    "copy": "clone contiguous to _to_copy detach alias expand expand_as type_as",
}
_KIND = {name: kind for kind, names in _ALIKE.items() for name in names.split()}
_NO_WORK = ("sym_", "_assert", "lift_fresh", "scalar_tensor", "_local_scalar")


def count_operators(model: nn.Module, example: tuple[Any, ...]) -> Counter[str]:
    """Count the operators of a network's exported graph; spellings of one thing are one kind.

    Examples:
        >>> count_operators(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (torch.ones(1, 2, 2),))
        Counter({'reshape': 1, 'linear': 1})
    """
    with torch.no_grad():
        graph = torch.export.export(model, example, strict=False).graph
    found = Counter[str]()
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            name = node.target.overloadpacket.__name__.removesuffix("_")
            if not name.startswith(_NO_WORK):
                found[_KIND.get(name, name)] += 1
    return found


def above(ours: Counter[str], peer: Counter[str]) -> dict[str, int]:
    """Return the kinds of which there are more than the peer leaves, with how many more.

    Examples:
        >>> above(Counter(add=3, mul=1), Counter(add=1, mul=2))
        {'add': 2}
    """
    return dict(ours - peer)
