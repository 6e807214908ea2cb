"""Run one pass over every capture of a folded copy of a model, and write the result back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from refold.errors import InputError
from refold.graph.capture import capture_all
from refold.graph.driver import fold_model
from refold.graph.lift import Lifter
from refold.graph.record import Fold, Kept
from refold.graph.shapes import as_arguments, find_shapes
from refold.graph.skeleton import own_tensors, skeleton, unwrap
from refold.graph.surgery import Editor
from refold.graph.surgery_edits import UnwritableError
from refold.graph.tracer_leaves import NO_FORWARD


class Pass(Protocol):
    """Edits one capture and notes what it did and what it left."""

    folds: list[Fold]
    kept: list[Kept]

    def run(self) -> None:
        """Make the edits."""
        ...


P = TypeVar("P", bound=Pass)


@dataclass(frozen=True, eq=False)
class Rewritten(Generic[P]):
    """What a pass made of a model.

    Args:
        model: the result.
        folded: the model as it was before the pass.
        passes: the pass of each capture, with its account.
        failures: parts whose code could not be followed, with the reason.
    """

    model: nn.Module
    folded: nn.Module
    passes: tuple[P, ...]
    failures: dict[str, str]


def rewrite(
    model: nn.Module, example_inputs: Any, make: Callable[[Lifter, Editor], P]
) -> Rewritten[P]:
    """Return a folded copy of `model` after a pass.

    Args:
        model: any module in eval mode; it stays as it is.
        example_inputs: a tensor or a tuple of tensors that the model accepts.
        make: builds the pass of one capture.

    Raises:
        RefusedError: when the model is in training mode.
        InputError: when it is no module, has no example, or cannot run on it.
    """
    if example_inputs is None:
        raise InputError("this needs example_inputs, a tensor or a tuple of tensors: sizes matter")
    folded = unwrap(fold_model(model, example_inputs).model)
    found = capture_all(folded)
    shapes = find_shapes(folded, found.captures, as_arguments(example_inputs))
    target = skeleton(folded)
    passes: list[P] = []
    for capture, known in zip(found.captures, shapes, strict=True):
        editor = Editor(capture)
        passes.append(make(Lifter.of(capture, known), editor))
        with torch.no_grad():
            passes[-1].run()
            target = _commit(passes[-1], editor, target)
    own_tensors(target, folded)
    failures = {path: why for path, why in found.failures.items() if why != NO_FORWARD}
    if any(done.folds for done in passes):
        target = fold_model(target, example_inputs, inplace=True).model
    return Rewritten(target, folded, tuple(passes), failures)


def _commit(done: Pass, editor: Editor, target: nn.Module) -> nn.Module:
    """Write one capture back; where its code cannot be written it stays, and the others do not."""
    try:
        return editor.commit(target) if done.folds else target
    except UnwritableError as error:  # raised before anything is written
        root = editor.capture
        done.folds.clear()
        done.kept[:] = [Kept(root.path or type(root.module).__name__, str(error))]
        return target
