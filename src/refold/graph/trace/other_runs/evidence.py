"""What a recorded graph takes for granted, found out by recording other runs of the same code.

A graph is what happened once. Other sizes, another precision or device, an optional argument, a
comparison that comes out the other way may take other paths: a step of a fold may only join calls
that belong together in all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from refold.graph.trace.code.names import names_in
from refold.graph.trace.code.unseen import asks_identity, catches, list_look_up, reads_unseen
from refold.graph.trace.code.values import code_of, helpers_of
from refold.graph.trace.frames import Frame, leaves, map_tree, walk
from refold.graph.trace.other_runs.needless import Needless
from refold.graph.trace.other_runs.optional import OtherArguments
from refold.graph.trace.other_runs.questions import Questions
from refold.graph.trace.other_runs.ranks import Ranks, takes_no_more_axes
from refold.graph.trace.other_runs.reach import Reach
from refold.graph.trace.other_runs.shapes import (
    many_shapes,
    of_half_sides,
    of_odd_sides,
    of_other_batch,
    of_other_sides,
    shaped,
    with_batch,
    with_length,
    with_sides,
    without_batch,
)
from refold.graph.trace.other_runs.types_named import write_types_named
from refold.graph.trace.other_runs.values import negated
from refold.graph.trace.other_runs.variants import Recorded, Snapshot, Variant, note_varying
from refold.graph.trace.recorder.notebook import PLAIN
from refold.graph.trace.recorder.recorder import Recorder
from refold.graph.trace.recorder.torch_calls import RecordError, UnansweredError
from refold.graph.trace.recording import Again, Arguments

_LOOKS_UP = "its code looks a size up in a table ({})"
_BRANCHES = "its code branches on a size ({})"
_ASKS_NUMBERS = "its parts ask for numbers that depend on the input"
_TYPES = {torch.bfloat16, torch.float32, torch.float64}
_OTHER_FORMS = (  # what they are called; of other sides, else another batch; in another precision
    ("of another size or precision", True, True),
    ("of another size", True, False),
    ("of another batch size or precision", False, True),
    ("of another batch size", False, False),
)


@dataclass(eq=False)
class Evidence:
    """The other runs of one recorded root, made when a fold asks.

    Args:
        recorder: the recorded run.
        again: records anew, given arguments and options of the recorder.
        arguments: what the root was called with.
        calls_known: whether no call of the root gives other arguments.
        made_up: whether nobody is known to call it with inputs of that rank.
    """

    recorder: Recorder
    again: Again
    arguments: Arguments
    calls_known: bool = False
    made_up: bool = False
    first: Snapshot = field(init=False)
    variants: list[Variant] = field(default_factory=list[Variant])

    def __post_init__(self) -> None:
        self.first = Snapshot.of(self.recorder.graph)
        self.root = self.recorder.root_frame
        self._names = {node.name: node for node in self.first.order}
        self._places = {node: place for place, node in enumerate(self.first.order)}
        self._recorded = Recorded(self.recorder, self.again, self.arguments, self.first)
        self._questions, self._ranks = Questions(self._recorded), Ranks(self._recorded)
        self._optional = OtherArguments(self._recorded)
        self._has_all_sizes = False
        self.elsewise: list[Variant] = []  # other shapes

    def vary(self) -> None:
        """Record other sizes, another precision and another device, as far as the code takes them.

        A frame whose own calls differ is fixed: no forward is generated for it.
        """
        needless = Needless.of(self.recorder, self.first)
        self.again.steady = needless.steady
        if not needless.says_all:
            self.again.copy_root()
        if self.recorder.real and any(map(self._has_weights, self.first.order)):
            self._at(None, "of other numbers")
        elif self.recorder.real:  # another run takes as long as the network
            for frame in walk(self.root):
                frame.fixed = frame.fixed or _ASKS_NUMBERS
        else:
            self._vary_shapes(() if needless.says_all else _OTHER_FORMS)
        if self.recorder.keeps:
            self._later()
        self._note_questions()
        note_varying(self.recorder, self.first, self.elsewise)
        for frame, reason in self.recorder.bakes.items():
            frame.fixed = frame.fixed or reason

    def _has_weights(self, node: fx.Node) -> bool:
        """Say whether a call has weights that a fold may change: other parts stay as they are."""
        is_part = node.op == "call_module" and node.target in self.recorder.opaque
        return node.op in ("call_module", "get_attr") and not is_part

    def _later(self) -> None:
        """Record later calls, which find what earlier ones have left behind."""
        what = "its code takes another path at a later call"
        try:
            found = self.again.later(self.arguments)
        except Exception:  # nothing is known then of the calls to come
            for frame in walk(self.root):
                frame.fixed = frame.fixed or what
        else:
            for run in found:
                self._add(what, run)

    def _vary_shapes(self, forms: Iterable[tuple[str, bool, bool]]) -> None:
        for what, sizes, other in forms:
            elsewhere = torch.float16 if other else None
            if self._at(of_other_sides if sizes else of_other_batch, what, elsewhere=elsewhere):
                break
        for kind in self._types_named():
            self._at(of_other_batch, "of another precision", elsewhere=kind)
        around = self.recorder.others  # questions whose answers no input changes
        if any(what not in around for _, what in self.recorder.decisions):
            for change in (of_odd_sides, of_half_sides):
                self._at(change, "of another size")
        if self.recorder.loses_size or self._counts_in_secret():
            self._has_all_sizes = True
            for change in self._ladder():
                self._at(change, "of another size")
        recorder = self.recorder
        counts_axes = recorder.hands_shape or recorder.gives_size  # it may hand on `*x.shape[2:]`
        is_free = self.made_up and bool(counts_axes)
        asks = bool(recorder.asks_rank) or is_free
        for change in self._other_ranks(asks):
            self._at(change, "of another rank")

    def _other_ranks(self, asks: bool) -> Iterator[Callable[[Tensor], list[int]]]:
        if asks:
            yield without_batch
        guesses = self.made_up and bool(self.recorder.gives_size)
        if (asks or guesses) and not takes_no_more_axes(self.recorder, self.first):
            yield from [with_batch] if asks else []
            yield from [with_length, with_sides] if guesses else []

    def _types_named(self) -> list[torch.dtype]:
        """Return the types, but for half precision, that code which asks for a type names."""
        asking = [getattr(frame.module, frame.method) for frame in self.recorder.asks_form]
        code = {code_of(one) for each in asking for one in (each, *helpers_of(each))}
        names = {name for one in code if one is not None for name in names_in(one)}
        held = {
            value
            for frame in self.recorder.asks_form
            for value in vars(frame.module).values()
            if isinstance(value, torch.dtype)
        }
        own = {p.dtype for p in self.recorder.root.parameters()}
        named = {kind for kind in _TYPES if str(kind).removeprefix("torch.") in names}
        return sorted((named | held) & _TYPES - own, key=str)

    def _note_questions(self) -> None:
        """Note what is asked of sizes without anyone noticing, and told by the code alone."""
        known = dict[tuple[type, str], list[str]]()
        for frame in walk(self.root) if self.recorder.gives_size else ():
            key = type(frame.module), frame.method
            if key not in known:
                known[key] = _secret_questions(getattr(frame.module, frame.method))
            self.recorder.unsettled.extend((frame, what) for what in known[key])

    def _ladder(self) -> Iterable[Callable[[Tensor], list[int]]]:
        given = [leaf for leaf in leaves(self.arguments) if isinstance(leaf, Tensor)]
        return many_shapes([tensor.shape for tensor in given], self._code())

    def _code(self) -> list[Callable[..., Any]]:
        """Return the methods that have run, each class's once."""
        code = {(type(f.module), f.method): getattr(f.module, f.method) for f in walk(self.root)}
        return list(code.values())

    def _counts_in_secret(self) -> bool:
        """Say whether sizes may decide unseen: in `np.prod(x.shape)`, or in a call that fails."""
        code, gives = self._code(), bool(self.recorder.gives_size)
        return any(map(catches, code)) or (gives and any(map(reads_unseen, code)))

    def stays(self) -> dict[fx.Node, str]:
        """Return the calls that no fold may take away, since their frame's code stays.

        Code that runs several times, or returns an object of its own, is written anew within what
        calls it, and stays with that.
        """
        times = Counter((frame.path, frame.method) for frame in walk(self.root))
        why: dict[Frame | None, str | None] = {None: None}
        for frame in walk(self.root):  # parents first
            is_repeated = times[frame.path, frame.method] > 1
            is_written = not is_repeated and all(isinstance(v, PLAIN) for v in leaves(frame.output))
            why[frame] = frame.fixed or (None if is_written else why[frame.parent])
        return {
            node: reason
            for node, frame in self.first.home.items()
            if (reason := why[frame]) is not None and node.op in ("call_function", "call_method")
        }

    def _at(self, change: Callable[[Tensor], list[int]] | None, what: str, **options: Any) -> bool:
        """Record the root on tensors of another shape; False where its code takes none."""
        other = partial(shaped, change=change) if change is not None else negated
        arguments = map_tree(other, self.arguments)
        try:
            found = self.again.run(arguments, **options)
        except Exception as error:  # then the code takes no such input, or keeps state for it
            if isinstance(error, RecordError) and not isinstance(error, UnansweredError):
                self.recorder.unsettled.append((self.root, str(error)))
                self.root.fixed = self.root.fixed or str(error)
            return False
        variant = self._add(f"its code takes another path for an input {what}", found)
        self.elsewise.append(variant)
        return True

    def _add(self, what: str, found: Recorder) -> Variant:
        variant = self._recorded.beside(what, found)
        if write_types_named(self.recorder, self.first, variant):
            variant = self._recorded.beside(what, found)
        if variant.counts_differ():
            self.recorder.loses_size.add(self.root)
        if variant.differs:
            self.variants.append(variant)
            for frame in variant.differs:
                frame.fixed = frame.fixed or what
        return variant

    def objection(self, nodes: Iterable[fx.Node], names: Iterable[str]) -> str | None:
        """Return why a step of a fold would be wrong in another run, or None.

        Args:
            nodes: what the step has joined, nodes made by earlier steps among them.
            names: the names of the recorded nodes that it started from.
        """
        chosen = {node for node in nodes if node in self.first.home}
        chosen |= {self._names[name] for name in names if name in self._names}
        places = sorted(chosen, key=self._places.__getitem__)
        for variant in self.variants:
            if reason := variant.objection(places):
                return f"{reason} ({_named(variant, places)})"
        recorder, reach = self.recorder, Reach(self.first, places)
        for frame, what in dict.fromkeys(recorder.decisions):
            if reach.meets(frame):
                is_named = partial(reach.has, frame)
                if reason := self._questions.objection(what, places, is_named=is_named):
                    return reason
        doubts = dict.fromkeys(recorder.unsettled)
        unsettled = next((what for frame, what in doubts if reach.has(frame)), None)
        if unsettled is not None or self.calls_known:
            return unsettled
        return self._ranks.objection(places) or self._optional.objection(places)

    def functions(self, names: Iterable[str]) -> list[str]:
        """Return which of these names are those of recorded calls of functions, in order."""
        nodes = [self._names[name] for name in names if name in self._names]
        called = [node for node in nodes if node.op in ("call_function", "call_method")]
        return [node.name for node in sorted(called, key=self._places.__getitem__)]

    def other_path(self, frame: Frame) -> str | None:
        """Return why a frame's own code would do something else in another call, or None."""
        for where, what in self.recorder.unsettled:
            if where is frame:
                return what
        asked = (what for where, what in self.recorder.decisions if where is frame)
        for what in dict.fromkeys(asked):
            found = self._questions.otherwise(what)
            if any(isinstance(run, str) or frame in run.differs for run in found) and (
                what not in self.recorder.by_values or self._differs_by_size(frame)
            ):
                return what
        return None

    def _differs_by_size(self, frame: Frame) -> bool:
        """Say whether a frame's code does something else at any of many sizes."""
        if not self._has_all_sizes:
            self._has_all_sizes = True
            for change in self._ladder():
                self._at(change, "of another size")
        return frame.fixed is not None

    def elsewhere(self) -> dict[fx.Node, str]:
        """Return the values that another run of the code reads elsewhere than this one."""
        found: dict[fx.Node, str] = {}
        optional = [] if self.calls_known else self._optional.runs
        runs = [*self.variants, *(run for run in optional if isinstance(run, Variant))]
        for variant in (variant for variant in runs if variant.differs):
            for node in self.first.order:
                if node in variant.same and not variant.read_by_same(node):
                    found.setdefault(node, variant.what)
        return found


def _secret_questions(code: Callable[..., Any]) -> list[str]:
    asked = ((_LOOKS_UP, list_look_up), (_BRANCHES, asks_identity))
    found = ((what, ask(one)) for one in (code, *helpers_of(code)) for what, ask in asked)
    return [what.format(line) for what, line in found if line is not None]


def _named(variant: Variant, places: list[fx.Node]) -> str:
    return next((f.path or "the model" for f in variant.differs), str(places[0]))
