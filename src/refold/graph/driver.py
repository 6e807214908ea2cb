"""The driver: copy, capture, fold, write back, compare. It owns what passes must not care about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from refold.errors import InputError, RefusedError
from refold.graph.agreement import (
    Planned,
    Retries,
    Twins,
    beyond_rounding,
    disagreement,
    in_double,
    misfit,
    narrowest,
    shapes_of,
)
from refold.graph.copies.modules import stored_tensors, submodule
from refold.graph.copies.owned import own_tensors
from refold.graph.copies.skeleton import skeleton
from refold.graph.copies.wrappers import unwrap
from refold.graph.fold.passes import folded
from refold.graph.fold.record import COMPUTED, Fold, Kept
from refold.graph.fold.setbacks import LeftAlone, SetbackError, Step
from refold.graph.policy import Policy
from refold.graph.threads import undisturbed
from refold.graph.trace.capture import Capture, Captures, capture_all, leaf_modules
from refold.graph.trace.examples import as_arguments, drawn
from refold.graph.trace.frames import map_tree
from refold.graph.trace.leaves import NO_FORWARD, is_layer
from refold.graph.trace.parametrized import Computed, with_computed_weights
from refold.graph.trace.recording import Arguments, Runs
from refold.graph.trace.surroundings import surroundings_kept
from refold.graph.trace.unrun import drop

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class FoldedModel:
    """A folded model, what was folded and what was not.

    Args:
        model: the result.
        folds: the steps of the fold.
        kept: what stays, with the reason.
        unrun: the largest parts that no recorded call runs; gone where `drop_unused` was asked for.
        made_up: the shapes that the model was recorded on where no example was given.
        roots: the parts that were recorded, each as one graph; `""` alone is the whole model.
    """

    model: nn.Module
    folds: tuple[Fold, ...]
    kept: tuple[Kept, ...]
    unrun: tuple[str, ...] = ()
    made_up: tuple[tuple[int, ...], ...] = ()
    roots: tuple[str, ...] = ()


def fold_model(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    allow_growth: bool = False,
    inplace: bool = False,
    check: bool = False,
    drop_unused: bool = False,
    apart: Collection[str] = (),
    grown: Collection[str] = (),
) -> FoldedModel:
    """Return a copy of `model` with every exact fold made.

    Args:
        model: any module in eval mode; wrappers (DDP, EMA, torch.compile) are looked through.
        example_inputs: a tensor, or a tuple or list of arguments.
        allow_growth: also merge what then needs more multiply-adds.
        inplace: change `model` itself.
        check: run the model and the result once on the example, or on numbers drawn for one of
            our own, and put back what differs; else only errors and shapes are compared.
        drop_unused: leave out what no recorded call runs, and calls whose value nobody reads.
        apart: paths of parts whose parallel branches are not merged.
        grown: paths of parts where merges may need more multiply-adds.

    Raises:
        RefusedError: when the model is in training mode.
        InputError: when the model cannot be copied or cannot run on the example.
    """
    plain = unwrap(model)
    if _trains(plain):
        raise RefusedError(
            "the model is in training mode, where norms use the batch; call model.eval() first"
        )
    _check_shapes(plain)
    policy = Policy(allow_growth, frozenset(apart), frozenset(grown), drop_unused)
    with undisturbed(), surroundings_kept(plain):
        made = _fold(plain, as_arguments(example_inputs), policy, check)
        if drop_unused:
            drop(made.model, made.unrun)
        if inplace:
            plain.__class__, plain.__dict__ = made.model.__class__, made.model.__dict__
        else:
            own_tensors(made.model, plain)
            plain = made.model
    shapes = tuple(tuple(value.shape) for value in made.made_up or ())
    roots = tuple(made.roots)
    return FoldedModel(plain, tuple(made.folds), tuple(made.kept), tuple(made.unrun), shapes, roots)


def _fold(plain: nn.Module, inputs: tuple[Any, ...] | None, policy: Policy, check: bool) -> _Made:
    ready, computed = with_computed_weights(plain)
    try:
        made = _fold_ready(plain, ready, inputs, policy, check)
    except InputError:
        if not computed:
            raise
        made = None
    if made is None:  # the model's code looks at how its weights are computed
        return _fold_ready(plain, plain, inputs, policy, check) or _Made(skeleton(plain))
    made.folds[:0] = map(_stored, computed)
    return made


def _fold_ready(
    plain: nn.Module,
    ready: nn.Module,
    inputs: tuple[Any, ...] | None,
    policy: Policy,
    check: bool,
) -> _Made | None:
    """Fold a model whose weights are stored; None where it is then another function."""
    fold = partial(_settled, ready, inputs, policy, runs=Runs())
    left: dict[str, LeftAlone] = {}
    made = fold(left)
    example = made.made_up if inputs is None else inputs
    if example is None and ready is not plain:
        return None  # nothing has run with the stored weights
    if not (made.folds or ready is not plain):
        return made
    for path, given in made.alone.items() if check else ():
        made, left = _agreed(_part_differs(ready, path, given), fold, made, left, path)
    if example is None:
        return made
    differs = _comparison(plain, ready, example, policy, check)
    made, left = _agreed(differs, fold, made, left)
    is_other = ready is not plain and not made.folds and differs(made, left)
    return None if is_other else made


def _with_numbers(model: nn.Module, example: Any) -> Any:
    """Return an example with numbers, drawn where it has none, on the model's own device."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def made(value: Any) -> Any:
        is_blank = isinstance(value, Tensor) and value.is_meta and device.type != "meta"
        return drawn(value).to(device) if is_blank else value

    return map_tree(made, example)


def _part_differs(plain: nn.Module, path: str, given: Arguments) -> _Differs:
    """Return what says how a fold differs from the model in a part that no run of it checks.

    The part runs by itself, on numbers drawn for what it was recorded on.
    """

    def differs(made: _Made, left: _Left) -> str | None:
        if not any(where == path for where, _ in made.steps):
            return None
        try:
            one, other = submodule(plain, path), submodule(made.model, path)
        except AttributeError:  # a step of what is around it has taken it in
            return None
        args, kwargs = _with_numbers(one, given)
        tolerance = None if narrowest(one) == torch.float64 else _ROUNDED
        return disagreement(one, other, args, kwargs, tolerance=tolerance)

    return differs


_ROUNDED = 1e-2  # of a part in low precision: rounding its weights moves its answer


def _stored(weight: Computed) -> Fold:
    """Return the entry of the account for a weight that is computed once."""
    detail = f"{weight.name}, computed once by {weight.how}"
    counts = weight.parameters_before, weight.parameters_after
    return Fold(weight.path, COMPUTED, detail, *counts)


@dataclass(eq=False)
class _Made:
    """One fold of a whole model, and the steps that it took in each capture."""

    model: nn.Module
    unrun: list[str] = field(default_factory=list[str])
    made_up: tuple[Any, ...] | None = None
    roots: list[str] = field(default_factory=list[str])
    folds: list[Fold] = field(default_factory=list[Fold])
    kept: list[Kept] = field(default_factory=list[Kept])
    steps: list[tuple[str, Step]] = field(default_factory=list[tuple[str, Step]])
    alone: dict[str, Arguments] = field(default_factory=dict[str, Arguments])
    calls: Planned | None = None  # layers of each class, where the whole model is one graph
    shapes: list[torch.Size] | None = None  # of its results, where one recording ran it whole
    is_still: bool = False  # whether that recording left nothing behind


_Left = dict[str, LeftAlone]
_Differs = Callable[[_Made, _Left], str | None]


@dataclass(frozen=True, eq=False)
class FoldedGraph(Generic[T]):
    """What became of a graph that is not a recording of a model.

    Args:
        result: what the writer made of it.
        folds: the steps of the fold.
        kept: what stays, with the reason.
    """

    result: T
    folds: tuple[Fold, ...]
    kept: tuple[Kept, ...]


def fold_graph(
    make: Callable[[], Capture], write: Callable[[Capture], T], *, allow_growth: bool = False
) -> FoldedGraph[T]:
    """Fold a graph that was read from a file, and write it as whatever it came from.

    Args:
        make: returns the graph, a new one each time: a fold that failed half-way starts over.
        write: makes something of the edited graph. Where it fails the steps that led there are
            left alone; an `UnwritableError` names them by their nodes.
        allow_growth: also merge what then needs more multiply-adds.
    """
    left = LeftAlone()
    with undisturbed(), torch.no_grad():
        while True:
            capture = make()
            if left.whole is not None:
                kept = (Kept(type(capture.module).__name__, left.whole),)
                return FoldedGraph(write(capture), (), kept)
            try:
                return _written(capture, write, Policy(allow_growth), left)
            except SetbackError:  # each takes a step away
                continue


def _written(
    capture: Capture, write: Callable[[Capture], T], policy: Policy, left: LeftAlone
) -> FoldedGraph[T]:
    fold, kept = folded(capture, policy, left)

    def settled() -> T:
        fold.editor.settle()
        capture.shapes = fold.lifter.shapes
        return write(capture)

    return FoldedGraph(fold.finish(settled), tuple(fold.folds), tuple(kept))


def _settled(
    plain: nn.Module,
    inputs: tuple[Any, ...] | None,
    policy: Policy,
    left: _Left,
    runs: Runs | None = None,
) -> _Made:
    runs = runs or Runs()
    while True:  # each setback takes a step away
        try:
            return _fold_captures(
                plain, capture_all(plain, inputs, to_fold=True, runs=runs), policy, left
            )
        except SetbackError:
            continue


def _fold_captures(plain: nn.Module, found: Captures, policy: Policy, left: _Left) -> _Made:
    roots = [capture.path for capture in found.captures]
    made = _Made(skeleton(plain), found.unrun, found.made_up, roots, alone=found.alone)
    for capture in found.captures:
        with torch.no_grad():
            alone = left.setdefault(capture.path, LeftAlone())
            _fold_capture(capture, made, policy, alone)
    failures = found.failures.items()
    made.kept.extend(Kept(path, why) for path, why in failures if why != NO_FORWARD)
    return made


def _comparison(
    plain: nn.Module,
    ready: nn.Module,
    example: tuple[Any, ...],
    policy: Policy,
    check: bool,
) -> _Differs:
    """Return what says how a fold differs from the model on the example, or that it does not."""
    if not check:
        told = ready is plain  # else nothing has run without the stored weights
        return lambda made, left: misfit(
            plain,
            made.model,
            example,
            made.calls,
            made.shapes if told else None,
            is_still=made.is_still,
        )
    example = _with_numbers(plain, example)
    doubled = cache(lambda: (in_double(plain, example), in_double(ready, example)))

    def differs(made: _Made, left: _Left) -> str | None:
        def twins() -> Twins | None:
            twin, source = doubled()
            if twin is None or source is None:
                return None
            return twin[0], _settled(source[0], twin[1], policy, left).model, twin[1]

        return beyond_rounding(plain, made.model, example, twins)

    return differs


def _agreed(
    differs: _Differs,
    fold: Callable[[_Left], _Made],
    made: _Made,
    left: _Left,
    part: str | None = None,
) -> tuple[_Made, _Left]:
    """Return a fold that agrees with the model on the example: steps that do not are put back.

    Args:
        differs: says how a fold differs.
        fold: folds anew, with some steps left alone.
        made: the fold so far.
        left: the steps that it left alone.
        part: the path of the one part that is compared; None for the whole model.
    """

    def steps(made: _Made) -> list[tuple[str, Step]]:
        return [step for step in made.steps if part in (None, step[0])]

    made, left, reason = Retries(fold, differs, steps, _leave).agreed(made, left)
    if reason is not None:
        for path, alone in left.items():
            if part in (None, path):
                alone.whole = f"{reason}; every step was undone"
        made = fold(left)
    return made, left


def _leave(left: _Left, steps: Sequence[tuple[str, Step]], reason: str) -> _Left:
    """Return what is left alone when these steps are as well."""
    fresh = {path: alone.copy() for path, alone in left.items()}
    for path, step in steps:
        fresh[path].note_wrong(step, reason)
    return fresh


def _check_shapes(model: nn.Module) -> None:
    for name, tensor in stored_tensors(model):
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


def _fold_capture(capture: Capture, made: _Made, policy: Policy, left: LeftAlone) -> None:
    if left.whole is not None:
        made.kept.append(Kept(capture.path or type(capture.module).__name__, left.whole))
        return
    fold, kept = folded(capture, policy, left)
    if fold.folds:
        made.model = fold.commit(made.model)
    if capture.path == "" and not capture.opaque:  # else code that was not followed calls layers
        made.calls = Counter(kind for _, leaf in leaf_modules(capture) for kind in _kinds_in(leaf))
        if capture.evidence is not None and not capture.evidence.recorder.real:
            made.shapes = shapes_of(capture.evidence.recorder.result)
            made.is_still = capture.evidence.recorder.leaves_nothing
    made.folds.extend(fold.folds)
    made.kept.extend(kept)
    made.steps.extend((capture.path, step) for step in fold.steps)


def _kinds_in(leaf: nn.Module) -> list[type[nn.Module]]:
    """Return the classes of the layers that a call runs: a fold may put several in one place."""
    return [type(part) for part in leaf.modules() if is_layer(part)]
