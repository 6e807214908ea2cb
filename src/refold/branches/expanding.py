"""Expand: train-time branches in place of the convolutions of any network."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import nn

from refold.account import Account
from refold.branches.building import Adopting, Block, Builder, builder, must_compute
from refold.branches.origin import origin_of, place, plain_norm, remember, tail_of
from refold.branches.registry import block_factory, list_blocks
from refold.branches.sites import Site, find_sites
from refold.errors import GeometryError, InputError, RefusedError, require_kind
from refold.graph import Fold, Kept, like_of, outside_modes, own_tensors, skeleton, unwrap
from refold.workload import workload_of

Where = Callable[[str, nn.Module], bool] | str | Sequence[str] | None
"""Which convolutions: a function of name and module, or patterns such as `"layer1.*"`."""

_log = logging.getLogger(__name__)


@outside_modes()
def expand(
    model: nn.Module, block: Block = "dbb", *, where: Where = None, preserve: bool = True
) -> nn.Module:
    """Return the network with each convolution, and the norm after it, as a train-time block.

    The block stands at the convolution's name and holds both; at the norm's name stays an Identity,
    or the activation that a fused norm had inside. Stride, padding, dilation, groups, dtype, device
    and mode are kept. Convolutions that are shared, hooked, parametrized or called twice are left
    alone, as are those that the block does not suit: `expand_plan` and this module's log say why.

    Args:
        model: any module, in eval or training mode; it is not changed.
        block: a registered name (`refold.branches.list_blocks()`), a block class, or a callable
            `conv -> module`.
        where: which convolutions; all where None.
        preserve: start with the network's own function, in eval and in training mode: the new
            branches' last norms scale by zero, or the main kernel makes up for them. False starts
            the branches as the block does.

    Raises:
        RefusedError: when the model is already expanded, or a block without `adopt` does not
            compute what its convolution did.
        InputError: when `block` is unknown, or a pattern matches no convolution.

    Exact when:
        always, with `preserve`; a convolution with neither norm nor bias is kept, unless the block
            is linear before its norm ("qarepvgg", "orepa").

    Note:
        A branch's norm needs more than one value per channel to train: where the map is a single
        pixel (squeeze-and-excite), a batch of one fails in training mode. Leave those out by
        `where`.

    Examples:
        >>> from refold import blocks
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        >>> wide = expand(net, "acb")
        >>> type(wide[0]).__name__, wide[1]
        ('ACBlock', Identity())

    Source: DBB, arXiv:2103.13425, section 4.4, for starting at the main branch alone.
    """
    wide, done = _expanded(model, block, where, preserve)
    for item in done.kept:
        _log.info("%s stays: %s", item.where, item.reason)
    if not done.steps:
        _log.warning("no convolution became a block; expand_plan(model, block) says why")
    return wide


def expand_plan(model: nn.Module, block: Block = "dbb", *, where: Where = None) -> Account:
    """Return which convolutions `expand` replaces, and why the others stay.

    Args:
        model: any module.
        block: as in `expand`.
        where: as in `expand`.

    Raises:
        RefusedError: when the model is already expanded.
        InputError: when `block` is unknown, or a pattern matches no convolution.

    Examples:
        >>> from refold import blocks
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU())
        >>> print(expand_plan(net, "acb").kept[0].reason)
        it has neither a norm nor a bias, which the norms of the branches need
    """
    return _expanded(model, block, where, preserve=False)[1]


def _expanded(
    model: nn.Module, block: Block, where: Where, preserve: bool
) -> tuple[nn.Module, Account]:
    build, source = builder(block), unwrap(model)
    _must_be_plain(source)
    target = skeleton(source)
    own_tensors(target, source)
    sites, kept = find_sites(target)
    inside = dict(_inside_blocks(target))
    kept.update((site.conv, inside[site.conv]) for site in sites if site.conv in inside)
    steps: list[Fold] = []
    wanted = _selector(where, {*(site.conv for site in sites), *kept})
    for site in sites:
        if site.conv in kept:
            continue
        if not wanted(site.conv, target.get_submodule(site.conv)):
            kept[site.conv] = "`where` leaves it out"
            continue
        try:
            steps.append(_put(target, site, build, preserve))
        except _StaysError as reason:
            kept[site.conv] = str(reason)
    return target, Account(
        model=target,
        steps=tuple(steps),
        kept=tuple(Kept(name, reason) for name, reason in kept.items()),
        cost_before=workload_of(source),
        cost_after=workload_of(target),
        done="expanded",
    )


def _must_be_plain(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if origin_of(module) is not None:
            raise RefusedError(
                f"the model is already expanded: {path} is a {type(module).__name__}; "
                "call collapse first"
            )


def _inside_blocks(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the modules inside the model's own blocks, which already have branches."""
    kinds = tuple(kind for kind in map(block_factory, list_blocks()) if isinstance(kind, type))
    for path, module in model.named_modules():
        if isinstance(module, kinds):
            for below, _ in module.named_modules(prefix=path):
                yield below, f"it is part of a {type(module).__name__}, which already has branches"


def _selector(where: Where, names: set[str]) -> Callable[[str, nn.Module], bool]:
    if where is None:
        return lambda name, conv: True
    if callable(where):
        return where
    require_kind("where", where, (str, Sequence), "a function, a pattern or several")
    patterns = [where] if isinstance(where, str) else list(where)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(
                f"where: {pattern!r} matches no convolution; there are "
                f"{', '.join(sorted(names)[:3])}"
            )
    return lambda name, conv: any(fnmatchcase(name, pattern) for pattern in patterns)


class _StaysError(Exception):
    """Why a convolution does not become a block."""


def _put(target: nn.Module, site: Site, build: Builder, preserve: bool) -> Fold:
    """Replace one convolution.

    Raises:
        _StaysError: when it has to stay.
    """
    conv = target.get_submodule(site.conv)
    norm = None if site.norm is None else target.get_submodule(site.norm)
    adopted = None
    try:
        made = _made(build, conv)
        if made is conv:
            raise _StaysError("the callable returned it unchanged")
        if isinstance(made, Adopting):
            adopted = None if norm is None else plain_norm(norm)
            made.adopt(conv, adopted, preserve=preserve)
    except (GeometryError, RefusedError) as reason:
        raise _StaysError(str(reason)) from reason
    if not isinstance(made, Adopting) and preserve:
        must_compute(made, conv, site.conv)
    remember(made, conv, norm if adopted is not None else None, site)
    before = workload_of(conv).parameters + (
        0 if adopted is None else workload_of(adopted).parameters
    )
    place(target, site.conv, made)
    if norm is not None and adopted is not None:
        place(target, cast(str, site.norm), tail_of(norm, site.tail))
    detail = f"becomes {type(made).__name__}"
    return Fold(site.conv, "expand", detail, before, workload_of(made).parameters)


def _made(build: Builder, conv: nn.Module) -> nn.Module:
    made = cast(Any, build(conv))
    if not isinstance(made, nn.Module):
        raise InputError(f"block must make modules, got {type(made).__name__} for {conv}")
    if made is conv:
        return conv
    weight = cast(nn.Conv2d, conv).weight
    layout = like_of([weight], weight.ndim - 2).memory_format
    if layout is not torch.contiguous_format:
        made.to(memory_format=layout)
    return made.train(conv.training)
