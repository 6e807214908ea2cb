"""Record one root again and again until what its frames are is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from refold.errors import InputError
from refold.graph.copies.held import ATOMS
from refold.graph.copies.modules import modules_by_path, submodule
from refold.graph.copies.owned import duplicate
from refold.graph.copies.skeleton import skeleton
from refold.graph.threads import device_of_caller
from refold.graph.trace.arguments import parted
from refold.graph.trace.frames import leaves
from refold.graph.trace.leaves import one_line
from refold.graph.trace.recorder.answers import Answers
from refold.graph.trace.recorder.chance import Chance
from refold.graph.trace.recorder.flags import FlagNotes
from refold.graph.trace.recorder.notebook import DEVICE_MARK
from refold.graph.trace.recorder.recorder import Recorder
from refold.graph.trace.recorder.steady import Form
from refold.graph.trace.recorder.torch_calls import RecordError
from refold.graph.trace.state import Attributes, Changes, StateChangeError
from refold.graph.trace.surroundings import surroundings_kept

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Made = TypeVar("Made")
_MAX_RECORDINGS = 32


class TraceError(Exception):
    """A root could not be followed; `called` names the children that ran before it failed.

    `is_followed` says that its code runs to the end all the same: it is not a frame for what it
    does; `is_whole` that this run did.
    """

    def __init__(
        self,
        reason: str,
        called: set[str],
        *,
        is_followed: bool = False,
        is_whole: bool = False,
    ) -> None:
        super().__init__(reason)
        self.called, self.is_followed, self.is_whole = called, is_followed, is_whole


@dataclass(eq=False)
class Seen:
    """What the modules of a model were called with, in all recordings so far.

    Args:
        calls: arguments without storage, by the id of the module, in order.
        made_up: ids of those that ran on an input of our own.
        ran: ids of all modules that were called, layers too.
        reads: ids of the tensors that calls were given.
        asks: by id, the modules whose code asked for numbers of the input, with the reason.
    """

    calls: dict[int, list[Arguments]] = field(default_factory=dict[int, list[Arguments]])
    made_up: set[int] = field(default_factory=set[int])
    ran: set[int] = field(default_factory=set[int])
    reads: set[int] = field(default_factory=set[int])
    asks: dict[int, str] = field(default_factory=dict[int, str])

    def note(self, recorder: Recorder) -> None:
        """Add what a recording saw."""
        self.ran |= recorder.ran
        self.reads |= recorder.reads
        for key, calls in recorder.seen.items():
            self.calls.setdefault(key, calls)
        for path, reason in recorder.asks.items():
            self.asks[id(submodule(recorder.root, path))] = reason


def record(
    module: nn.Module,
    changes: Changes,
    leaves: dict[str, str],
    arguments: Arguments,
    seen: Seen,
    *,
    real: bool = False,
) -> Recorder:
    """Record one module of a skeleton as a root.

    Args:
        module: the root.
        changes: notes what its code changes.
        leaves: paths to take as atomic, with the reason; more are added as they show.
        arguments: what to call the root with.
        seen: notes what its modules are called with.
        real: whether the arguments hold numbers, to compute with where code asks for them.

    Raises:
        TraceError: when its own forward cannot be followed.
        InputError: when it cannot run on real arguments.
    """
    computes, last, draws, answers = False, "", False, Answers()
    for _ in range(_MAX_RECORDINGS):
        recorder = Recorder(module, leaves, changes, real=computes)
        recorder.answers, failure = answers, None
        chance = Chance()
        recorder.chance = chance if draws else None
        recorder.flags = FlagNotes(recorder.graph)
        try:
            _run(recorder, arguments)
        except (RecordError, StateChangeError) as error:
            last, failure = str(error), error
        except Exception as error:  # any model code may raise anything
            if computes:
                raise _unrecorded(module, arguments, recorder, seen, error) from error
            last = f"its code fails on tensors without storage ({one_line(error)})"
            failure = error
        else:
            last = ""
        seen.note(recorder)
        moved = chance.restore()
        if moved or not recorder.leaves_nothing:
            answers.forget()
        if moved and not draws:
            draws = True
            continue
        late = {path: why for path, why in recorder.late.items() if path not in leaves}
        if not last and not late:
            module.__dict__.update(recorder.constants)
            answers.forget()
            return recorder
        is_hopeless = not real and recorder.is_own(failure)  # parts that stay calls do not help
        if is_hopeless or "" in late or (not late and (computes or not real)):
            followed = "" in late or not last or recorder.unanswered is not None
            reason, called = late.get("", last), _called(recorder)
            raise TraceError(reason, called, is_followed=followed, is_whole=recorder.is_whole)
        leaves.update(late)
        leaves.update(recorder.opaque)
        computes = computes or (bool(last) and real)
    raise TraceError("every recording calls its modules in another way", set())


def _unrecorded(
    module: nn.Module, arguments: Arguments, recorder: Recorder, seen: Seen, error: Exception
) -> InputError | TraceError:
    """Return what to raise where a run with numbers fails."""
    if not _runs(module, arguments):
        return InputError(_cannot_run(arguments, error))
    seen.note(recorder)
    reason = f"its code cannot run while it is recorded ({one_line(error)})"
    return TraceError(reason, _called(recorder))


def _runs(module: nn.Module, arguments: Arguments) -> bool:
    """Say whether a module runs where nobody watches it."""
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, arguments)
    try:
        with torch.random.fork_rng(devices=[]), device_of_caller():
            duplicate(module)(*args, **kwargs)
    except Exception:
        return False
    return True


def run_blank(model: nn.Module, args: tuple[Any, ...], *, runs_all: bool = False) -> Any:
    """Return what a model gives, without storage; it raises where its code does.

    Args:
        model: any module.
        args: its arguments.
        runs_all: run every operator, for whoever counts them.

    Examples:
        >>> run_blank(nn.Linear(2, 3), (torch.zeros(1, 2),)).shape
        torch.Size([1, 3])
    """
    return recorded_blank(model, args, runs_all=runs_all).result


def recorded_blank(
    model: nn.Module,
    args: tuple[Any, ...],
    *,
    runs_all: bool = False,
    counts_only: bool = False,
    is_still: bool = False,
) -> Recorder:
    """Return the recording of a run without storage; see `run_blank`.

    Args:
        model: any module.
        args: its arguments.
        runs_all: run every operator, for whoever counts them.
        counts_only: tell how often each layer is called, and the result. Code that asks for the
            numbers of stored tensors may fail then.
        is_still: a call is known to leave nothing behind: the model runs itself, not a copy.
    """
    with surroundings_kept(model) as around:
        root = model if is_still else skeleton(model)
        recorder = Recorder(root, {}, Changes(around=around))
        recorder.runs_all, recorder.counts_only = runs_all, counts_only
        _run(recorder, parted(args))
    return recorder


class Runs:
    """Other runs of a model's code, kept while it is folded again and again.

    Nothing edits the graph of another run. Arguments with numbers are told apart by what they are,
    not by what they hold, and so kept alive.
    """

    def __init__(self) -> None:
        self._known: dict[Any, tuple[Any, Any]] = {}

    def get(self, key: Any, arguments: Arguments, make: Callable[[], Made]) -> Made:
        """Return the run under a key and with such arguments; make it, if it is the first.

        It raises what making it raised.
        """
        form = repr(pytree.tree_structure(arguments))  # by which name a value is given
        key = (key, form, tuple(map(_told_apart, leaves(arguments))))
        if key not in self._known:
            try:
                found: Any = make()
            except Exception as error:
                found = error
            self._known[key] = arguments, found
        found = self._known[key][1]
        if isinstance(found, Exception):
            raise found
        return found


def _told_apart(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return (type(leaf), leaf) if type(leaf) in ATOMS else id(leaf)
    if not leaf.is_meta:
        return id(leaf)
    return leaf.shape, leaf.dtype, leaf.stride(), leaf.__dict__.get(DEVICE_MARK)


class Again:
    """Records a root another time, with other arguments or options; it raises where the code does.

    It has a copy of the root, as the recorded one will be edited: `copy_root` makes it of what the
    first run has left, else one of the model's own is made when it is needed. Parts that are known
    to be `steady` are not looked into again.

    Args:
        first: the first recording of the root.
        source: the root in the model itself, which nobody edits.
        path: where that is.
        runs: keeps what is recorded.
    """

    def __init__(self, first: Recorder, source: nn.Module, path: str, runs: Runs) -> None:
        self._first, self._source, self._runs = first, source, runs
        self._real, self._forced, self._around = first.real, first.forced, first.changes.around
        self._key = path, first.real, frozenset(first.forced)
        self.steady: dict[str, Form] = {}

    @cached_property
    def _root(self) -> nn.Module:
        return skeleton(self._source)

    def copy_root(self) -> None:
        """Copy the root as the first run has left it: an object within may have changed unseen."""
        self._root = skeleton(self._first.root)

    @cached_property
    def _at_rest(self) -> Attributes:
        return Attributes(self._root)

    def run(self, arguments: Arguments, *, whole: bool = False, **options: Any) -> Recorder:
        """Return the recording with these arguments, and these options of the recorder.

        Args:
            arguments: what the root is called with.
            whole: look into steady parts, too.
            options: of the recorder.
        """
        names = tuple((name, repr(value)) for name, value in options.items())
        steady = {} if whole else self.steady
        record = partial(self._one, arguments, self._at_rest, steady=steady, **options)
        return self._runs.get((self._key, frozenset(steady), names), arguments, record)

    def later(self, arguments: Arguments) -> list[Recorder]:
        """Return the recordings of the calls to come: each finds what earlier ones have left.

        Those are a second one, and a third where the second changes something again.
        """
        return self._runs.get((self._key, "later"), arguments, partial(self._in_turn, arguments))

    def _in_turn(self, arguments: Arguments) -> list[Recorder]:
        calls = list[Recorder]()
        try:
            for stays in (True, True, False):
                calls.append(self._one(arguments, Attributes(self._root), stays=stays))
                if not calls[-1].keeps:  # the next call would find what this one has found
                    break
        finally:
            self._at_rest.restore()
        return calls[1:]

    def _one(
        self,
        arguments: Arguments,
        before: Attributes,
        *,
        stays: bool = False,
        steady: dict[str, Form] | None = None,
        **options: Any,
    ) -> Recorder:
        given: dict[str, Any] = {"real": self._real, **options}
        other = Recorder(self._root, dict(self._forced), Changes(around=self._around), **given)
        other.steady = {} if other.real or steady is None else steady
        other.asked_at = {**self._first.asked_at}  # a cache may have answered there since
        _run(other, arguments, before, stays=stays)
        return other


def _run(
    recorder: Recorder,
    arguments: Arguments,
    before: Attributes | None = None,
    *,
    stays: bool = False,
) -> None:
    """Run a recorder; what the code has changed stays for the next run, or is put back."""
    before = before or Attributes(recorder.root)
    try:
        with torch.random.fork_rng(devices=[], enabled=recorder.real), device_of_caller():
            recorder.run(*arguments, before)
    finally:
        around = recorder.changes.around
        if not stays and not recorder.is_as_before:
            before.restore()
        if not stays and around is not None:
            around.restore()


def _called(recorder: Recorder) -> set[str]:
    paths = {id(module): path for path, module in modules_by_path(recorder.root)}
    return {paths[key] for key in recorder.seen if key in paths}


def _cannot_run(arguments: Arguments, error: Exception) -> str:
    given = pytree.tree_leaves(arguments)
    shapes = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in given]
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"the model cannot run on example_inputs of shape {shapes}: {first}"
