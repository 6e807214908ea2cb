"""Rewrite a folded model by other passes than the fold, and compare what comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from refold.errors import InputError
from refold.graph.agreement import Retries, Twins, beyond_rounding, in_double
from refold.graph.copies.owned import own_tensors
from refold.graph.copies.skeleton import skeleton
from refold.graph.copies.wrappers import unwrap
from refold.graph.driver import fold_model
from refold.graph.fold.record import Fold, Kept
from refold.graph.lift.lifter import Lifter
from refold.graph.surgery.editor import Editor
from refold.graph.surgery.edits import UnwritableError
from refold.graph.trace.capture import capture_all
from refold.graph.trace.examples import as_arguments
from refold.graph.trace.leaves import NO_FORWARD


class Pass(Protocol):
    """Edits one capture and notes what it did and what it left.

    Args:
        folds: its steps.
        starts: for each step, the name of the node that it started from.
        kept: what stays, with the reason.
        left: names of nodes from which no step is to start, with the reason.
    """

    folds: list[Fold]
    starts: list[str]
    kept: list[Kept]
    left: dict[str, str]

    def run(self) -> None:
        """Make the edits."""
        ...


P = TypeVar("P", bound=Pass)
_Step = tuple[str, str]  # the path of its capture, the name of the node that it starts from
_Left = dict[_Step, str]
_Make = Callable[[Lifter, Editor], P]


@dataclass(frozen=True, eq=False)
class Rewritten(Generic[P]):
    """What a pass made of a model.

    Args:
        model: the result.
        folded: the model as it was before the pass.
        passes: the pass of each capture, with its account.
        failures: parts whose code could not be followed, with the reason.
        steps: the steps that were made.
    """

    model: nn.Module
    folded: nn.Module
    passes: tuple[P, ...]
    failures: dict[str, str]
    steps: tuple[_Step, ...] = ()


def rewrite(model: nn.Module, example_inputs: Any, make: _Make[P]) -> Rewritten[P]:
    """Return a folded copy of `model` after a pass.

    Both forms run once on the example; a step by which they differ is undone.

    Args:
        model: any module in eval mode; it stays as it is.
        example_inputs: a tensor, or a tuple or list of arguments.
        make: builds the pass of one capture.

    Raises:
        RefusedError: when the model is in training mode.
        InputError: when it is not a module, has no example, or cannot run on it.
    """
    inputs = as_arguments(example_inputs)
    if inputs is None:
        raise InputError(
            "example_inputs is required, a tensor, or a tuple or list of arguments: the result "
            "depends on sizes"
        )
    folded = unwrap(fold_model(model, inputs).model)
    redo = partial(_rewritten, folded, inputs, make)
    differs = partial(_difference, inputs, make)
    retries = Retries(redo, differs, lambda made: made.steps, _leave)
    made, left, reason = retries.agreed(redo({}), {})
    while reason is not None:
        left = _leave(left, made.steps, f"{reason}; every step was undone")
        made = redo(left)
        reason = differs(made, left)
    return made


def _leave(left: _Left, steps: Sequence[_Step], reason: str) -> _Left:
    return left | dict.fromkeys(steps, reason)


def _difference(
    inputs: tuple[Any, ...], make: _Make[P], made: Rewritten[P], left: _Left
) -> str | None:
    """Return how a result differs from the folded model on the example; None where it does not."""
    if not made.steps:
        return None

    def twins() -> Twins | None:
        twin = in_double(made.folded, inputs)
        return twin and (twin[0], _rewritten(*twin, make, left).model, twin[1])

    return beyond_rounding(made.folded, made.model, inputs, twins)


def _rewritten(
    folded: nn.Module, inputs: tuple[Any, ...], make: _Make[P], left: _Left
) -> Rewritten[P]:
    found = capture_all(folded, inputs)
    target = skeleton(folded)
    passes: list[P] = []
    steps: list[_Step] = []
    for capture in found.captures:
        editor = Editor(capture)
        done = make(Lifter.of(capture), editor)
        done.left = {name: why for (path, name), why in left.items() if path == capture.path}
        passes.append(done)
        with torch.no_grad():
            done.run()
            target = _commit(done, editor, target)
        steps += [(capture.path, name) for name in done.starts if done.folds]
    own_tensors(target, folded)
    failures = {path: why for path, why in found.failures.items() if why != NO_FORWARD}
    if steps:
        target = fold_model(target, inputs, inplace=True).model
    return Rewritten(target, folded, tuple(passes), failures, tuple(dict.fromkeys(steps)))


def _commit(done: Pass, editor: Editor, target: nn.Module) -> nn.Module:
    """Write one capture back; where its code cannot be written it stays, and the others do not."""
    try:
        return editor.commit(target) if done.folds else target
    except UnwritableError as error:  # raised before anything is written
        root = editor.capture
        done.folds.clear()
        done.kept[:] = [Kept(root.path or type(root.module).__name__, str(error))]
        return target
