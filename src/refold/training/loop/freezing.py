"""Parts of a network that do not train: their weights stay, and so do their norms' statistics."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _NormBase as BatchLike

from refold.errors import InputError


def freeze(network: nn.Module, patterns: Iterable[str], *, norms: bool = False) -> None:
    """Keep parts of a network as they are, in place; `still` finds them again.

    Args:
        network: whose parts they are.
        patterns: of the names of modules or parameters, such as `"layer1*"`.
        norms: also every norm with running statistics, scales and shifts included.

    Raises:
        InputError: when a pattern matches nothing, or nothing trains.

    Examples:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))
        >>> freeze(net, ["0", "1"])
        >>> [name for name, p in net.named_parameters() if p.requires_grad], len(still(net))
        (['2.weight', '2.bias'], 1)
    """
    parts = dict(network.named_modules())
    weights = dict(network.named_parameters())
    if not any(weight.requires_grad for weight in weights.values()):
        kind = (
            "all its parameters are frozen (requires_grad)" if weights else "it has no parameters"
        )
        raise InputError(f"this network has nothing to train: {kind}")
    for pattern in patterns:
        found = [name for name in (*parts, *weights) if name and fnmatchcase(name, pattern)]
        if not found:
            some = ", ".join(name for name, _ in network.named_children())
            raise InputError(
                f"freeze: {pattern!r} matches no part of the network, whose parts are {some}; "
                "'NAME*' also matches what lies below"
            )
        for name in found:
            (parts.get(name) or weights[name]).requires_grad_(False)
    for part in parts.values():
        if norms and isinstance(part, BatchLike):
            part.requires_grad_(False)
    if not any(weight.requires_grad for weight in weights.values()):
        raise InputError("freeze: nothing is left to train; give narrower patterns")


def still(network: nn.Module, *, every: bool = False) -> list[nn.Module]:
    """Return the norms whose statistics must not move: those that are frozen, or all.

    One without a scale and a shift is frozen if all that trains beside it is.
    """
    found: list[nn.Module] = []
    for parent in network.modules():
        for part in parent.children():
            if isinstance(part, BatchLike):
                weights = list(part.parameters()) or list(parent.parameters())
                if every or (weights and not any(weight.requires_grad for weight in weights)):
                    found.append(part)
    return found
