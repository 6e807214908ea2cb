"""What an expanded network remembers of its original.

The memory lies on each block as a plain attribute without tensors, so copies, pickles and loaded
state dicts keep it; the norm's place is remembered relative to the block, so parts of a network
remember theirs.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from refold.branches.sites import Site
from refold.graph import is_layer, skeleton

_ATTRIBUTE = "refold_origin"


@dataclass(frozen=True, eq=False)
class Origin:
    """The convolution and norm that a block stands for.

    Args:
        conv: the convolution without its tensors.
        biased: whether the convolution has a bias.
        norm: the norm without its tensors, or None where the block took in none.
        learned: which of weight and bias the norm has.
        tail: children of the norm that stayed at its path.
        up: how many names of the block's path lie below where both paths part.
        down: the norm's path from there; None where there is no norm.
        main: where the block keeps convolution and norm; None for a block that cannot tell.
    """

    conv: nn.Module
    biased: bool
    norm: nn.Module | None = None
    learned: frozenset[str] = frozenset()
    tail: tuple[str, ...] = ()
    up: int = 1
    down: str | None = None
    main: tuple[str, str] | None = None

    def norm_path(self, block: str) -> str | None:
        """Return the path of the norm of the block at a path.

        Examples:
            >>> Origin(nn.Conv2d(1, 1, 1), True, up=1, down="bn").norm_path("layer.conv")
            'layer.bn'
        """
        if self.down is None:
            return None
        return ".".join([*block.split(".")[: -self.up], self.down])


def origin_of(module: nn.Module) -> Origin | None:
    """Return the origin of a block, or None for any other module.

    Examples:
        >>> origin_of(nn.ReLU()) is None
        True
    """
    return cast("Origin | None", module.__dict__.get(_ATTRIBUTE))


def remember(block: nn.Module, conv: nn.Module, norm: nn.Module | None, site: Site) -> None:
    """Store on a block its convolution, and the norm that it adopted."""
    up, down = _way(site.conv, site.norm)
    block.__dict__[_ATTRIBUTE] = Origin(
        conv=hollow(conv),
        biased=cast(Any, conv).bias is not None,
        norm=None if norm is None else hollow(norm),
        learned=frozenset() if norm is None else frozenset(_filled(norm)),
        tail=site.tail,
        up=up,
        down=down,
        main=cast("tuple[str, str] | None", getattr(block, "main", None)),
    )


def hollow(module: nn.Module) -> nn.Module:
    """Return a copy of a layer without its tensors and children.

    Examples:
        >>> hollow(nn.Conv2d(1, 2, 3)).weight is None
        True
    """
    twin = skeleton(module)
    twin.__dict__["_parameters"] = dict.fromkeys(module._parameters)
    twin.__dict__["_buffers"] = dict.fromkeys(module._buffers)
    twin.__dict__["_modules"] = {}
    return twin


def plain_norm(norm: nn.Module) -> nn.Module:
    """Return a norm as torch's own layer, without the children that a subclass adds.

    Examples:
        >>> norm = nn.BatchNorm1d(2)
        >>> plain_norm(norm) is norm
        True
    """
    if is_layer(norm):
        return norm
    twin = skeleton(norm)
    twin.__class__ = next(cls for cls in type(norm).__mro__ if cls.__module__.startswith("torch."))
    twin.__dict__["_modules"] = {}
    return twin


def tail_of(norm: nn.Module, names: tuple[str, ...]) -> nn.Module:
    """Return what stays at a norm's path: its other children under their names, or nothing."""
    if not names:
        return nn.Identity()
    kept = nn.Sequential(OrderedDict((name, norm.get_submodule(name)) for name in names))
    kept.training = norm.training
    return kept


def place(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at the path of another one.

    Examples:
        >>> net = nn.Sequential(nn.ReLU())
        >>> place(net, "0", nn.Identity())
        >>> net
        Sequential(
          (0): Identity()
        )
    """
    above, _, name = path.rpartition(".")
    model.get_submodule(above)._modules[name] = module


def _filled(module: nn.Module) -> list[str]:
    return [name for name, tensor in module._parameters.items() if tensor is not None]


def _way(conv: str, norm: str | None) -> tuple[int, str | None]:
    names = conv.split(".")
    if norm is None:
        return len(names), None
    others = norm.split(".")
    shared = 0
    while shared < min(len(names), len(others)) - 1 and names[shared] == others[shared]:
        shared += 1
    return len(names) - shared, ".".join(others[shared:])
