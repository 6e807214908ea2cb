"""Weights that are computed from weights at every call: computed once, and stored in a layer.

Weight standardisation, assembled kernels and their like: nothing in them depends on the input.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import Tensor, fx

from refold.algebra.operator import Conv, Operator, chain, sequence
from refold.graph.calls import canonical, name_of, reads_shape_only
from refold.graph.copies.modules import submodule
from refold.graph.fold.fold_pass import FoldPass
from refold.graph.fold.record import COMPUTED, Fold
from refold.graph.fold.region import Region, Regions
from refold.graph.lift.lifter import Lifter
from refold.graph.surgery.edits import alive


def store_weights(fold: FoldPass) -> None:
    """Give every call whose weight is computed from weights alone a layer that holds it."""
    computed = [node for node in fold.lifter.capture.graph.nodes if is_computed(fold.lifter, node)]
    for node in computed:
        if not alive(node):
            continue
        region = Regions(fold.lifter, chains=True).region(node)
        if region is not None:
            fold.attempt(region.nodes, partial(_store, fold, region))


def store_constants(fold: FoldPass) -> None:
    """Store what is computed from buffers alone, such as a view of an index, at every call."""
    for node in list(fold.lifter.capture.graph.nodes):
        if alive(node) and _is_of_buffers(fold.lifter, node) and _is_last(fold, node):
            fold.attempt([node], partial(_store_constant, fold, node))


def _is_of_buffers(lifter: Lifter, node: fx.Node) -> bool:
    if node.op not in ("call_function", "call_method") or lifter.tensor(node) is None:
        return False
    paths = lifter.constants.sources(node)
    return bool(paths) and all(_buffer(lifter, path) is not None for path in paths)


def _is_last(fold: FoldPass, node: fx.Node) -> bool:
    """Say whether something reads a value that more than buffers take part in."""
    if node in fold.lifter.tainted or node in fold.lifter.capture.stays:
        return False
    readers = (user for user in node.users if not reads_shape_only(user, node))
    return any(not _is_of_buffers(fold.lifter, user) for user in readers)


def _buffer(lifter: Lifter, path: str) -> Tensor | None:
    """Return the buffer at a path, None where a parameter or another attribute is."""
    owner, _, name = path.rpartition(".")
    return submodule(lifter.capture.module, owner)._buffers.get(name)


def _store_constant(fold: FoldPass, node: fx.Node) -> bool:
    lifter, value = fold.lifter, fold.lifter.tensor(node)
    paths = lifter.constants.sources(node)
    sizes = [buffer.numel() for path in paths if (buffer := _buffer(lifter, path)) is not None]
    if value is None or value.numel() > sum(sizes):
        return False
    root = lifter.capture.module
    own = [(submodule(root, p.rpartition(".")[0]), p.rpartition(".")[2]) for p in paths]
    stays = any(name not in owner._non_persistent_buffers_set for owner, name in own)
    where = _where(fold, node, paths)
    new = fold.editor.insert_stored(value.contiguous().clone(), instead=node, persistent=stays)
    lifter.shapes[new] = tuple(value.shape)
    fold.editor.replace(node, new)
    fold.editor.sweep()
    fold.touch([node], [new])
    fold.edited()
    fold.folds.append(Fold(where, COMPUTED, f"{name_of(node)} of a buffer", 0, 0))
    return True


def _where(fold: FoldPass, node: fx.Node, paths: tuple[str, ...]) -> str:
    """Return where a value is computed: at its tensor's module, where code above reads that."""
    owner = paths[0].rpartition(".")[0] if paths else ""
    if fold.editor.edits.home[node].path or not owner:
        return fold.path(node)
    return fold.lifter.capture.full(f"{owner}.{name_of(node)}")


def is_computed(lifter: Lifter, node: fx.Node) -> bool:
    """Say whether a call is a layer whose weight is computed, from parameters alone."""
    if node.op != "call_function":
        return False
    call = canonical(node)
    weight = None if call is None else call.arguments.get("weight")
    if not isinstance(weight, fx.Node) or weight.op in ("get_attr", "placeholder"):
        return False
    return lifter.tensor(weight) is not None


def _store(fold: FoldPass, region: Region) -> bool:
    def own(leaf: Operator) -> Operator:
        origin = region.origin(leaf)
        stored = origin is not None and is_computed(fold.lifter, origin) and isinstance(leaf, Conv)
        return replace(leaf) if stored else leaf

    return fold.put(region, sequence(*map(own, chain(region.op))), COMPUTED)
