"""Layers that take in what stands beside them: what such a layer is, what it becomes, the entry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, fx, nn

from refold.algebra.cost import parameters
from refold.algebra.operator import Conv, Operator, chain, sequence
from refold.engine.ledger import Rewrite
from refold.graph.calls import place_of
from refold.graph.fold.fold_pass import FoldPass
from refold.graph.fold.lower import like_of, lower
from refold.graph.fold.record import Fold
from refold.graph.lift.lifter import Lifter
from refold.graph.lift.piece import Piece


@dataclass(frozen=True, eq=False)
class Taker:
    """A layer that has taken something in.

    Args:
        op: what it computes now.
        module: the module that does.
    """

    op: Conv
    module: nn.Module


def simplified(fold: FoldPass, *parts: Operator) -> tuple[tuple[Operator, ...], Rewrite]:
    """Return what some operators in a row become, with real weights, and how."""
    shadow, replay = fold.decisions.stand_in(sequence(*parts))
    rewrite = fold.decisions.rewrite(shadow)
    return chain(replay.run(rewrite)), rewrite


def taker(fold: FoldPass, conv: Conv, *behind: Operator) -> Taker | None:
    """Return a layer with what is behind it taken in; None where that is not one layer."""
    [*before, op], _ = simplified(fold, conv, *behind)
    return lowered(op, conv) if isinstance(op, Conv) and not before else None


def lowered(op: Conv, old: Conv) -> Taker:
    """Return the module of an operator, in the precision of the layer that it was."""
    held: list[Tensor] = [tensor for tensor in (old.weight, old.bias) if tensor is not None]
    return Taker(op, lower(op, like_of(held, len(old.axes))))


def is_layer(lifter: Lifter, node: fx.Node) -> bool:
    """Say whether a call is one linear layer or convolution."""
    piece = lifter.lift(node)
    if not isinstance(piece, Piece) or node.op != "call_module" or piece.through:
        return False
    return piece.join == "none" and isinstance(piece.ops[0], Conv)


def conv_of(lifter: Lifter, reader: fx.Node) -> Conv:
    """Return what a layer of `is_layer` computes."""
    piece = lifter.lift(reader)
    assert isinstance(piece, Piece)
    assert isinstance(piece.ops[0], Conv)
    return piece.ops[0]


def holds(lifter: Lifter, layer: fx.Node) -> str | None:
    """Return why the parameters of a layer must stay as they are, or None."""
    path = str(layer.target)
    return lifter.holds(path, lifter.capture.calls.get(path, 1))


def note(
    fold: FoldPass,
    rule: str,
    made_of: Sequence[fx.Node],
    before: Iterable[Operator],
    after: Iterable[Operator],
    *,
    at: Sequence[fx.Node],
    detail: Sequence[fx.Node] | None = None,
) -> None:
    """Remove what nobody reads any more, and enter an edit into the account.

    Args:
        fold: the fold that it is a step of.
        rule: its name.
        made_of: the calls that went into it.
        before: the operators that there were.
        after: those that there are.
        at: the calls that the entry stands at.
        detail: the calls that it names; those that went into it where not given.
    """
    fold.editor.sweep()
    fold.edited()
    fold.folds.append(
        Fold(
            where=" + ".join(map(fold.path, at)),
            rule=rule,
            detail=" + ".join(map(place_of, made_of if detail is None else detail)),
            parameters_before=sum(map(parameters, before)),
            parameters_after=sum(map(parameters, after)),
            made_of=tuple(map(fold.path, made_of)),
        )
    )
