"""Norms for a network that lost them to folding, so that it trains as before."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from refold.algebra.norm import norm_affine
from refold.branches import calibrate
from refold.errors import RefusedError
from refold.graph import duplicate, layer_class
from refold.ranked import CONVS, NORMS


class Normed(nn.Sequential):
    """A convolution and the norm that `restore_norms` put behind it."""


_NORMS: dict[type, Any] = {conv: NORMS[rank] for rank, conv in CONVS.items()}


def restore_norms(model: nn.Module, inputs: Iterable[Any]) -> nn.Module:
    """Return a copy with a batch norm behind every convolution that changes nothing yet.

    A pruned network has no norms, and is slow to train without. Each norm starts with the
    statistics of the inputs, and scale and shift that undo them. In training mode it is an ordinary
    norm, so that channels which hand a removed shortcut on are trained like the others.

    Args:
        model: a network in eval mode, its norms folded; it stays as it is.
        inputs: batches of data, each a tensor, a tuple or list of arguments, or a mapping of them
            by name.

    Raises:
        RefusedError: when the model is in training mode.
        InputError: when there is no input.

    Exact when:
        always, in eval mode; `refold.reparameterize` folds the norms again.

    Examples:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU()).eval()
        >>> [type(part).__name__ for part in restore_norms(net, [torch.randn(8, 1, 4, 4)])[0]]
        ['Conv2d', 'BatchNorm2d']

    Source: the norms of a converted network, arXiv:2111.00687, section 3.1.
    """
    if model.training:
        raise RefusedError("the model is in training mode; call model.eval() first")
    result = duplicate(model)
    pairs: dict[int, Normed] = {}
    for parent in list(result.modules()):
        for name, child in list(parent.named_children()):
            if layer_class(child) in _NORMS:
                pair = pairs.setdefault(id(child), Normed(child, _norm(child)))
                parent._modules[name] = pair
    calibrate(result.eval(), [(pair[0], pair[1]) for pair in pairs.values()], inputs)
    return result.eval()


def join_norms(model: nn.Module) -> nn.Module:
    """Put convolutions back where `restore_norms` found them, in place; return the model.

    Args:
        model: with the norms folded; where one is left, its pair stays.

    Examples:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU()).eval()
        >>> trained = restore_norms(net, [torch.randn(8, 1, 4, 4)])
        >>> trained[0][1] = nn.Identity()
        >>> join_norms(trained)[0]
        Conv2d(1, 2, kernel_size=(1, 1), stride=(1, 1))
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Normed) and isinstance(child[1], nn.Identity):
                parent._modules[name] = child[0]
    return model


def _norm(conv: Any) -> nn.Module:
    norm: Any = _NORMS[layer_class(conv)](conv.out_channels).to(conv.weight)
    with torch.no_grad():
        plain = norm_affine(norm.running_mean, norm.running_var, None, None, norm.eps)
        norm.weight.copy_(1 / cast(Tensor, plain.scale))
    return norm
