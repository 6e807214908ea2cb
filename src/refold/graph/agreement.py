"""Run a model and its folded form once, and find the steps of the fold that they differ by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from refold.errors import InputError
from refold.graph.copies.modules import stored_tensors, submodule
from refold.graph.copies.owned import duplicate
from refold.graph.copies.skeleton import skeleton
from refold.graph.threads import device_of_caller, threads_of_caller
from refold.graph.trace.arguments import parted
from refold.graph.trace.frames import leaves
from refold.graph.trace.recorder.chance import seeded
from refold.graph.trace.recorder.recorder import Recorder
from refold.graph.trace.recording import recorded_blank, run_blank
from refold.graph.trace.state import StateChangeError, untouched
from refold.graph.trace.surroundings import surroundings_kept

S = TypeVar("S")
M = TypeVar("M")
L = TypeVar("L")
Twins = tuple[nn.Module, nn.Module, tuple[Any, ...]]
Planned = Counter[type[nn.Module]]
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}
_ROUNDED = 5e-2  # of activations in half precision
_MOST_WRONG = 3
_CHAOS = 1e-3  # what a model makes of a rounding, at most


def disagreement(
    model: nn.Module,
    folded: nn.Module,
    inputs: tuple[Any, ...],
    named: dict[str, Any] | None = None,
    *,
    tolerance: float | None = None,
) -> str | None:
    """Return how two models differ on an example; None where they do not, or nobody can tell.

    On an example without numbers, only errors and shapes are compared, as `misfit` does.

    Args:
        model: the one that is right.
        folded: the other one.
        inputs: arguments of both.
        named: keyword arguments for both.
        tolerance: the largest relative error; by default what fits the type of an output.

    Examples:
        >>> layer = nn.ReLU()
        >>> disagreement(layer, nn.ReLU6(), (torch.full((1, 2), 9.0),))
        'the folded model gives another answer on the example (relative error 0.33)'
    """
    if any(value.is_meta for value in leaves(inputs) if isinstance(value, Tensor)):
        return misfit(model, folded, inputs)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        first = _result(model, inputs, named)
        if isinstance(first, Exception) or any(tensor.is_meta for tensor in first):
            return None
        with surroundings_kept(model):  # the folded model's hooks are the model's own
            second = _result(folded, inputs, named)
        found = _difference(first, second, tolerance)
        if found is None or _difference(first, _result(model, inputs, named)) is not None:
            return None
        shaken = _result(model, *pytree.tree_map_only(Tensor, _shaken, (inputs, named)))
        return _difference(first, second, _rounding(first, shaken, tolerance))


def _shaken(tensor: Tensor) -> Tensor:
    """Return a tensor with its numbers off by a few roundings."""
    if not tensor.is_floating_point():
        return tensor
    return tensor * (1 + 4 * torch.finfo(tensor.dtype).eps)


def _rounding(
    first: list[Tensor], shaken: list[Tensor] | Exception, tolerance: float | None
) -> float | None:
    """Return the tolerance for a model that makes much of a rounding, as it does itself.

    However exact a fold is, it rounds in other places. No fault of a hundredth hides below.
    """
    if tolerance is not None or isinstance(shaken, Exception):
        return tolerance
    pairs = [(a, b) for a, b in zip(first, shaken, strict=False) if a.shape == b.shape]
    moved = [_error(a, b) for a, b in pairs if a.is_floating_point() and a.numel()]
    most = max((_TOLERANCE.get(a.dtype, _ROUNDED) for a, _ in pairs), default=_ROUNDED)
    return max(most, min(10 * max(moved, default=0.0), _CHAOS))


def misfit(
    model: nn.Module,
    folded: nn.Module,
    inputs: tuple[Any, ...],
    planned: Planned | None = None,
    shapes: list[torch.Size] | None = None,
    *,
    is_still: bool = False,
) -> str | None:
    """Return the error or the other shapes that a folded model gives; it computes no numbers.

    Args:
        model: the one that is right.
        folded: the other one.
        inputs: arguments of both.
        planned: how many layers of each class the folded one should call; not compared where
            nobody knows.
        shapes: of the right model's results, where a recording has told them.
        is_still: a call is known to leave nothing behind, in the model or around it.

    Examples:
        >>> misfit(nn.Linear(2, 3), nn.Linear(2, 4), (torch.zeros(1, 2),))
        'the folded model gives another answer (other shapes)'
    """
    try:
        first = shapes_of(run_blank(model, inputs)) if shapes is None else shapes
    except Exception:  # code that asks for numbers, say
        return None
    try:
        run = _run_of(folded, inputs, is_still)
    except Exception as error:
        return f"the folded model fails ({type(error).__name__}: {error})"
    if first != shapes_of(run.result):
        return "the folded model gives another answer (other shapes)"
    return None if planned is None else _unplanned(run, planned)


def _run_of(folded: nn.Module, inputs: tuple[Any, ...], is_still: bool) -> Recorder:
    try:
        return recorded_blank(folded, inputs, counts_only=True, is_still=is_still)
    except Exception:
        return recorded_blank(folded, inputs)


def shapes_of(result: Any) -> list[torch.Size]:
    """Return the shapes of the tensors of a result.

    Examples:
        >>> shapes_of({"a": [torch.zeros(2, 3)], "b": 1})
        [torch.Size([2, 3])]
    """
    return [x.shape for x in leaves(result) if isinstance(x, Tensor)]


def _unplanned(run: Recorder, planned: Planned) -> str | None:
    """Return the kind of layer that a folded model calls more or less often than its graph does."""
    called = Planned()
    for path, count in run.calls.items():
        called[type(submodule(run.root, path))] += count
    for kind in dict.fromkeys((*planned, *called)):
        if called[kind] != planned[kind] and kind is not nn.Identity:  # which says where one was
            return (
                f"the folded model calls {called[kind]} layers of class {kind.__name__}, its graph "
                f"{planned[kind]}"
            )
    return None


def beyond_rounding(
    model: nn.Module,
    folded: nn.Module,
    inputs: tuple[Any, ...],
    twins: Callable[[], Twins | None],
) -> str | None:
    """Return how two models differ on an example; where rounding may be why, in float64.

    Rounding the weights of a deep network moves its answer, by more than a wrong fold may, however
    exact the fold is. In half precision the answers always differ, and a CPU takes long to say so.

    Args:
        model: the one that is right.
        folded: the other one.
        inputs: arguments of both.
        twins: returns the model in float64, what the same steps make of that, and the inputs; None
            where there is none.
    """
    kind = narrowest(model)
    reason = None if kind.itemsize < 4 else disagreement(model, folded, inputs)
    if kind == torch.float64 or (reason is None and kind.itemsize == 4):
        return reason
    try:
        found = twins()
    except InputError:  # its code names a precision (`x.float()`), and so has no twin
        found = None
    return disagreement(*(found or (model, folded, inputs)))


@dataclass(frozen=True)
class Retries(Generic[M, L, S]):
    """How to make something again without some of its steps, and to tell whether it is right.

    Args:
        make: makes it, with some steps left alone.
        differs: says how what was made differs from the model; None where it does not.
        steps: returns the steps that it took.
        leave: returns what is left alone when some steps are as well, for a reason.
    """

    make: Callable[[L], M]
    differs: Callable[[M, L], str | None]
    steps: Callable[[M], Sequence[S]]
    leave: Callable[[L, Sequence[S], str], L]

    def agreed(self, made: M, left: L) -> tuple[M, L, str | None]:
        """Return what is made without the steps that are wrong, at most a few.

        Args:
            made: made with `left` left alone.
            left: what was left alone so far.

        Returns:
            What was made, what was left alone, and how it still differs.
        """
        for _ in range(_MOST_WRONG):
            reason = self.differs(made, left)
            if reason is None:
                return made, left, None
            wrong = wrong_step(self.steps(made), partial(self._is_right_without, left))
            left = self.leave(left, wrong, f"{reason}; the step was undone")
            made = self.make(left)
        return made, left, self.differs(made, left)

    def _is_right_without(self, left: L, steps: Sequence[S]) -> bool:
        fewer = self.leave(left, steps, "")
        return self.differs(self.make(fewer), fewer) is None


def wrong_step(steps: Sequence[S], is_right_without: Callable[[list[S]], bool]) -> list[S]:
    """Return the step that is wrong, in a list; empty where there is no step.

    Args:
        steps: of a result that differs from the model.
        is_right_without: does them anew without some, and says whether the result agrees.

    Examples:
        >>> wrong_step([1, 2, 3, 4], lambda left_out: 3 in left_out)
        [3]
    """
    suspects, aside = list(steps), list[S]()
    while len(suspects) > 1:  # halve: with those aside left out, one of the others is wrong
        half = suspects[: len(suspects) // 2]
        if is_right_without([*aside, *half]):
            suspects = half
        else:
            aside, suspects = [*aside, *half], suspects[len(half) :]
    return suspects


def narrowest(model: nn.Module) -> torch.dtype:
    """Return the narrowest floating type that a model keeps weights in; float64 without any.

    Examples:
        >>> narrowest(nn.Linear(2, 2).half()), narrowest(nn.ReLU())
        (torch.float16, torch.float64)
    """
    kept = [x.dtype for _, x in stored_tensors(model) if x.is_floating_point()]
    return min(kept, key=lambda dtype: dtype.itemsize, default=torch.float64)


def in_double(
    model: nn.Module, inputs: tuple[Any, ...]
) -> tuple[nn.Module, tuple[Any, ...]] | None:
    """Return a copy of a model and of its inputs in float64; None where a layer has none.

    Examples:
        >>> wide, (x,) = in_double(nn.Linear(2, 2), (torch.ones(1, 2),))
        >>> wide.weight.dtype, x.dtype
        (torch.float64, torch.float64)
    """
    try:
        return duplicate(model).double(), pytree.tree_map_only(Tensor, _widened, inputs)
    except Exception:
        return None


def _widened(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _result(
    model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any] | None
) -> list[Tensor] | Exception:
    """Return the tensors of a result; the model and the inputs stay as they are."""
    copies: tuple[Callable[[nn.Module], nn.Module], ...] = (skeleton, duplicate)
    for copy in copies:
        try:
            runs = copy(model)
            guard = untouched(runs) if copy is skeleton else torch.no_grad()
            with guard, seeded(), surroundings_kept(model), threads_of_caller(), device_of_caller():
                given = pytree.tree_map_only(Tensor, torch.clone, (inputs, named or {}))
                args, kwargs = parted(given[0])
                result = runs(*args, **kwargs, **given[1])
        except StateChangeError:
            continue
        except Exception as error:
            return error
        return [leaf for leaf in leaves(result) if isinstance(leaf, Tensor)]
    return RuntimeError("it changes what it keeps")


def _difference(
    first: list[Tensor], second: list[Tensor] | Exception, tolerance: float | None = None
) -> str | None:
    what = "the folded model gives another answer on the example"
    if isinstance(second, Exception):
        line = (str(second).splitlines() or [""])[0]
        return f"the folded model fails on the example ({type(second).__name__}: {line})"
    if [x.shape for x in first] != [y.shape for y in second]:
        return f"{what} (other shapes)"
    for one, two in zip(first, second, strict=True):
        bound = _TOLERANCE.get(one.dtype, _ROUNDED) if tolerance is None else tolerance
        if not one.is_floating_point():
            if not torch.equal(one, two):
                return what
        elif one.numel() and not (error := _error(one, two)) <= bound:
            return f"{what} (relative error {error:.2g})"
    return None


def _error(one: Tensor, two: Tensor) -> float:
    if not torch.equal(torch.isfinite(one), torch.isfinite(two)):
        return float("inf")
    one, two = (torch.nan_to_num(x.double(), 0.0, 0.0, 0.0) for x in (one, two))
    scale = float(one.abs().max())
    gap = float((one - two).abs().max())
    return gap / scale if scale else gap
