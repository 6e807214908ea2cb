"""The driver: copy, capture, fold, write back. It owns what passes must not care about.

Safety lives here: the caller's model is read, never changed; no storage is shared with it; what is
not about to be replaced is copied once, and what is replaced is never copied at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from refold.errors import InputError, RefusedError
from refold.graph.capture import Capture, capture_all
from refold.graph.fanout import push_into_readers
from refold.graph.fold import FoldPass
from refold.graph.lift import Lifter
from refold.graph.record import Fold, Kept
from refold.graph.relayout import unify_layouts
from refold.graph.setbacks import LeftAlone, SetbackError
from refold.graph.shapes import Shapes, as_arguments, find_shapes
from refold.graph.siblings import merge_siblings
from refold.graph.skeleton import own_tensors, skeleton, unwrap
from refold.graph.surgery import Editor
from refold.graph.survey import survey
from refold.graph.tracer_leaves import NO_FORWARD
from refold.graph.undisturbed import undisturbed


@dataclass(frozen=True, eq=False)
class Outcome:
    """A folded model, what was folded and what was not."""

    model: nn.Module
    folds: tuple[Fold, ...]
    kept: tuple[Kept, ...]


def fold_model(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    allow_growth: bool = False,
    inplace: bool = False,
) -> Outcome:
    """Return a copy of `model` with every exact fold made.

    Args:
        model: any module in eval mode; wrappers (DDP, EMA, torch.compile) are looked through.
        example_inputs: a tensor or a tuple of tensors that the model accepts.
        allow_growth: also merge what then needs more multiply-adds.
        inplace: change `model` itself.

    Raises:
        RefusedError: when the model is in training mode.
        InputError: when the model cannot be copied or cannot run on the example.
    """
    plain = unwrap(_checked(model))
    if _trains(plain):
        raise RefusedError(
            "the model is in training mode, where norms use the batch; call model.eval() first"
        )
    _check_shapes(plain)
    with undisturbed():
        return _fold(plain, example_inputs, allow_growth, inplace)


def _fold(plain: nn.Module, example_inputs: Any, allow_growth: bool, inplace: bool) -> Outcome:
    left: dict[str, LeftAlone] = {}
    while True:  # each setback takes a step away
        try:
            target, folds, kept = _fold_once(plain, example_inputs, allow_growth, left)
        except SetbackError:
            continue
        break
    if inplace:
        plain.__class__, plain.__dict__ = target.__class__, target.__dict__
        return Outcome(plain, tuple(folds), tuple(kept))
    own_tensors(target, plain)
    return Outcome(target, tuple(folds), tuple(kept))


def _fold_once(
    plain: nn.Module, example_inputs: Any, allow_growth: bool, left: dict[str, LeftAlone]
) -> tuple[nn.Module, list[Fold], list[Kept]]:
    found = capture_all(plain)
    shapes = find_shapes(plain, found.captures, as_arguments(example_inputs))
    target = skeleton(plain)
    folds: list[Fold] = []
    kept: list[Kept] = []
    for capture, known in zip(found.captures, shapes, strict=True):
        with torch.no_grad():
            alone = left.setdefault(capture.path, LeftAlone())
            target, done, stayed = _fold_capture(capture, known, target, allow_growth, alone)
        folds.extend(done)
        kept.extend(stayed)
    kept.extend(Kept(path, why) for path, why in found.failures.items() if why != NO_FORWARD)
    return target, folds, kept


def _checked(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise InputError(f"expected a torch.nn.Module, got {type(model).__name__}")
    return model


def _check_shapes(model: nn.Module) -> None:
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if is_lazy(tensor):
            raise InputError(f"{name} has no shape yet; run the model once before folding it")


def _trains(model: nn.Module) -> bool:
    """Return whether the model would behave as in training.

    A graph says itself how each call runs (an exported one cannot even be switched):
    there, only its layers tell.
    """
    if not isinstance(model, fx.GraphModule):
        return model.training
    return any(module.training for module in model.modules() if isinstance(module, _MODAL))


_MODAL = (_NormBase, _DropoutNd)


def _fold_capture(
    capture: Capture, shapes: Shapes, target: nn.Module, allow_growth: bool, left: LeftAlone
) -> tuple[nn.Module, list[Fold], list[Kept]]:
    if left.whole is not None:
        return target, [], [Kept(capture.path or type(capture.module).__name__, left.whole)]
    try:
        fold = _folded(capture, shapes, allow_growth, left)
        kept = survey(fold)
    except SetbackError:
        raise
    except Exception as error:  # whatever it is, it must not cost the other captures
        raise left.leave([], error) from error
    return (fold.commit(target) if fold.folds else target), fold.folds, kept


def _folded(capture: Capture, shapes: Shapes, allow_growth: bool, left: LeftAlone) -> FoldPass:
    lifter = Lifter.of(capture, shapes)
    editor = Editor(capture)
    unify_layouts(lifter, editor)
    fold = FoldPass(lifter, editor, allow_growth, left)
    merge_siblings(fold)
    fold.run()
    while push_into_readers(fold) or merge_siblings(fold):
        fold.run()
    return fold
