"""Norms that are called several times, each time on what a layer gives: into these layers.

A head that runs on every level of a pyramid calls its convolution and its norm once a level. Either
may also be shared alone: one norm behind several layers.
"""

from __future__ import annotations

from functools import partial

from torch import fx

from refold.algebra.operator import Affine, Conv, Operator
from refold.graph.copies.modules import submodule
from refold.graph.fold.fold_pass import FoldPass
from refold.graph.fold.norms.takers import Taker, note, taker
from refold.graph.lift.lifter import Lifter
from refold.graph.lift.modules import lift_module
from refold.graph.lift.piece import Piece

RULE = "repeated norm into its layers"


def fold_repeated(fold: FoldPass) -> bool:
    """Give layers the norm that each of their calls goes through; return whether any took one."""
    lifter, done = fold.lifter, False
    calls = _calls(lifter)
    for path, norms in calls.items():
        if len(norms) < 2 or not isinstance(_op(lifter, norms[0]), Affine):
            continue
        layers = [norm.args[0] for norm in norms]
        sources = [layer for layer in layers if isinstance(layer, fx.Node)]
        if len(sources) == len(norms) and _may_take(lifter, calls, path, sources):
            done |= fold.attempt([*sources, *norms], partial(_take, fold, norms, sources))
    return done


def _calls(lifter: Lifter) -> dict[str, list[fx.Node]]:
    """Return the calls of each module of which every call is known."""
    found: dict[str, list[fx.Node]] = {}
    for node in lifter.capture.graph.nodes:
        if node.op == "call_module":
            found.setdefault(str(node.target), []).append(node)
    times = lifter.capture.calls
    return {path: nodes for path, nodes in found.items() if times.get(path, 1) == len(nodes)}


def _op(lifter: Lifter, node: fx.Node) -> Operator | None:
    """Return what the module of a call does to every map of its rank."""
    if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
        return None
    layer = submodule(lifter.capture.module, str(node.target))
    piece = lift_module(layer, node.args[0], lifter.shape(node.args[0]))
    if not isinstance(piece, Piece) or piece.join != "none" or piece.by_rank is not None:
        return None
    return piece.ops[0] if piece.rank_in else None


def _may_take(
    lifter: Lifter, calls: dict[str, list[fx.Node]], path: str, layers: list[fx.Node]
) -> bool:
    """Say whether each layer's value goes through the norm, every time, and nowhere else."""
    paths = dict.fromkeys(str(layer.target) for layer in layers)
    known = set(layers)
    for layer in layers:
        if layer.op != "call_module" or len(layer.users) != 1 or layer in lifter.tainted:
            return False
        if not isinstance(_op(lifter, layer), Conv) or layer in lifter.capture.stays:
            return False
    if not all(known.issuperset(calls.get(own, [None])) for own in paths):
        return False
    return not any(_is_held(lifter, own) for own in (path, *paths))


def _is_held(lifter: Lifter, path: str) -> bool:
    """Say whether anything but the calls of a module reads or changes its tensors."""
    module, constants = submodule(lifter.capture.module, path), lifter.constants
    names = [f"{path}.{name}" for name, _ in module.named_parameters(recurse=False)]
    if path in lifter.capture.pinned or any(map(lifter.capture.changing, module.buffers())):
        return True
    read = any(
        node.op == "get_attr" and node.target in names for node in lifter.capture.graph.nodes
    )
    constants.join(names)  # its own calls read them often
    shared = any(constants.shared(name) for name in names)
    constants.join(())
    return read or shared


def _take(fold: FoldPass, norms: list[fx.Node], layers: list[fx.Node]) -> bool:
    affine = _op(fold.lifter, norms[0])
    assert isinstance(affine, Affine)
    first = {str(layer.target): layer for layer in reversed(layers)}
    before, made = list[Operator](), dict[str, Taker]()
    for path, layer in first.items():
        conv = _op(fold.lifter, layer)
        assert isinstance(conv, Conv)
        new = taker(fold, conv, affine)
        if new is None:
            return False
        before.append(conv)
        made[path] = new
    for norm, layer in zip(norms, layers, strict=True):
        fold.editor.bypass(norm, layer, times=len(norms))
    for path, new in made.items():
        fold.editor.replace_module(first[path], new.module, times=len(layers))
    after, known = (new.op for new in made.values()), list(first.values())
    note(fold, RULE, [*known, norms[0]], [affine, *before], after, at=known)
    return True
