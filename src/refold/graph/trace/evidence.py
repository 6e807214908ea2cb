"""What a recorded graph takes for granted, found out by recording other runs of the same code.

A graph is what happened once. Other sizes, another precision or device, an optional argument, a
comparison that comes out the other way may take other paths: a step of a fold may only join calls
that belong together in all of them.
"""

from __future__ import annotations

import inspect
import linecache
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from refold.graph.calls import canonical
from refold.graph.copies.modules import submodule
from refold.graph.trace.alternatives import (
    asks_identity,
    branches_on,
    catches,
    helpers_of,
    list_look_up,
    many_shapes,
    negated,
    numbered,
    of_half_sides,
    of_odd_sides,
    of_other_batch,
    of_other_sides,
    ones_like,
    other_values,
    reads_unseen,
    shaped,
    sides_like,
    tensor_like,
    tensors_like,
    with_axis,
    with_batch,
    with_length,
    with_sides,
    without_batch,
)
from refold.graph.trace.doubts import is_default, keywords_read, mentions, reached, runs_apart
from refold.graph.trace.frames import Frame, ancestors, is_inside, leaves, map_tree, walk
from refold.graph.trace.overridden import layer_class
from refold.graph.trace.recorder.notebook import PLAIN, Flip
from refold.graph.trace.recorder.recorder import Recorder
from refold.graph.trace.recorder.torch_calls import RecordError, UnansweredError
from refold.graph.trace.recording import Again
from refold.graph.trace.variants import Item, Snapshot, Variant, note_varying

_ROW_NORMS = (nn.BatchNorm1d, nn.SyncBatchNorm)
_NORM_CALLS = ("batch_norm", "functional_batch_norm", "native_norm")
_OTHER_AXIS = (
    "the network takes (N, C) and (N, L, C), where the norm scales another axis than the layer "
    "beside it; a flatten(1) in front of them would fix which"
)
Arguments = tuple[tuple[Any, ...], dict[str, Any]]
_LOOKS_UP = "its code looks a size up in a table ({})"
_BRANCHES = "its code branches on a size ({})"
_MAX_FLIPS = 24
_MOST_ON_A_LINE = 6
_LONG = 64  # a loop that asks the same for ever gets a true answer in the end
_OPEN = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
_FLAGS = ("output_hidden_states", "output_attentions")  # of Hugging Face's models


@dataclass(frozen=True)
class Unknown:
    """An argument of which no other value is known that the code takes.

    Args:
        what: how a call may differ, for a refusal.
        name: of the argument.
        value: what the recorded call gave.
    """

    what: str
    name: str = ""
    value: Any = None


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
        self._deeper: dict[int, tuple[Recorder, Variant] | None] = {}
        self._flipped: dict[str, list[Variant | str]] = {}
        self._asked = Counter[str]()  # how often a line asks where it is answered otherwise
        self._optional: list[Variant | Unknown] | None = None
        self._has_all_sizes = False
        self.elsewise: list[Variant] = []  # other shapes

    def vary(self) -> None:
        """Record other sizes, another precision and another device, as far as the code takes them.

        A frame whose own calls differ is fixed: no forward is generated for it.
        """
        if self.recorder.real:
            self._at(None, "of other numbers")
        else:
            self._vary_shapes()
        if self.recorder.keeps:
            self._later()
        self._note_questions()
        note_varying(self.recorder, self.first, self.elsewise)
        for frame, reason in self.recorder.bakes.items():
            frame.fixed = frame.fixed or reason

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

    def _vary_shapes(self) -> None:
        for what, sizes, other in (
            ("of another size or precision", True, True),
            ("of another size", True, False),
            ("of another batch size or precision", False, True),
            ("of another batch size", False, False),
        ):
            if self._at(of_other_sides if sizes else of_other_batch, what, elsewhere=other):
                break
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
        is_free = self.made_up and counts_axes
        ranks = [without_batch, with_batch] if recorder.asks_rank or is_free else []
        if self.made_up and recorder.gives_size:
            ranks += [with_length, with_sides]
        for change in ranks:
            self._at(change, "of another rank")

    def _note_questions(self) -> None:
        """Note what is asked of sizes without anyone noticing, and told by the code alone."""
        for frame in walk(self.root) if self.recorder.gives_size else ():
            code = getattr(frame.module, frame.method)
            for one in (code, *helpers_of(code)):
                for what, ask in ((_LOOKS_UP, list_look_up), (_BRANCHES, asks_identity)):
                    if (line := ask(one)) is not None:
                        self.recorder.unsettled.append((frame, what.format(line)))

    def _ladder(self) -> Iterable[Callable[[Tensor], list[int]]]:
        given = [leaf for leaf in leaves(self.arguments) if isinstance(leaf, Tensor)]
        return many_shapes([tensor.shape for tensor in given], self._code())

    def _code(self) -> list[Callable[..., Any]]:
        """Return the methods that have run, each class's once."""
        code = {(type(f.module), f.method): getattr(f.module, f.method) for f in walk(self.root)}
        return list(code.values())

    def _counts_in_secret(self) -> bool:
        """Say whether sizes may decide unseen: in `np.prod(x.shape)`, or in a call that fails."""
        code, gives = self._code(), self.recorder.gives_size
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
        variant = Variant(what, self.first, self.root, found)
        self.recorder.loses_size |= variant.counts_differ()
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
        for frame, what in self.recorder.decisions:
            if self._reaches(frame, places) and (reason := self._decided(what, places)):
                return reason
        for frame, what in self.recorder.unsettled:
            if self._reaches(frame, places):
                return what
        return self._other_rank(places) or self._argued(places)

    def _inner(self, places: list[fx.Node]) -> list[fx.Node]:
        """Return the parts of a step that others of it read: what it ends in keeps its value."""
        chosen = set(places)
        return [node for node in places if not chosen.isdisjoint(self.first.readers[node])]

    def functions(self, names: Iterable[str]) -> list[str]:
        """Return which of these names are those of recorded calls of functions, in order."""
        nodes = [self._names[name] for name in names if name in self._names]
        called = [node for node in nodes if node.op in ("call_function", "call_method")]
        return [node.name for node in sorted(called, key=self._places.__getitem__)]

    def _touches(self, frame: Frame, places: list[fx.Node]) -> bool:
        """Say whether a step joins parts of one frame, not only within one of its calls."""
        given = set(leaves((frame.args, frame.kwargs)))
        if frame.parent is not None and any(node in given for node in self._inner(places)):
            return True
        parts = {self._part(frame, node) for node in places}
        parts.discard(None)
        outside = any(not is_inside(self.first.home[node], frame) for node in places)
        return bool(parts) and (outside or len(parts) > 1)

    def _reaches(self, frame: Frame, places: list[fx.Node]) -> bool:
        """Say whether another path of a frame's code may run only some parts of a step.

        It may where the step joins parts of the frame; or where it lies within one call, of a
        method or of a child, and the code also names the parts of that call themselves.
        """
        if not places or self._touches(frame, places):
            return bool(places)
        parts, followed = {self._part(frame, node) for node in places}, set[str]()
        call = parts.pop()
        while isinstance(call, Frame) and call.module is frame.module:
            followed.add(call.method)
            parts = {self._part(call, node) for node in places}
            call = parts.pop()
            if parts:
                names = {_child(frame, part) for part in (call, *parts)}
                return runs_apart(frame.module, names, followed)
        name = _child(frame, call)
        child = frame.module._modules.get(name)
        return child is not None and bool(reached(frame.module, name, child))

    def _part(self, frame: Frame, node: fx.Node) -> Item | None:
        """Return the node or the call of a frame that a node belongs to, None outside it."""
        below: Item = node
        for current in ancestors(self.first.home[node]):
            if current is frame:
                return below
            below = current
        return None

    # questions that may have another answer

    def other_path(self, frame: Frame) -> str | None:
        """Return why a frame's own code would do something else in another call, or None."""
        for where, what in self.recorder.unsettled:
            if where is frame:
                return what
        asked = (what for where, what in self.recorder.decisions if where is frame)
        for what in dict.fromkeys(asked):
            found = self._otherwise(what)
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

    def _otherwise(self, what: str) -> list[Variant | str]:
        """Return the runs in which a question has another answer."""
        if what not in self._flipped:
            self._flipped[what] = self._flip(what)
        return self._flipped[what]

    def _decided(self, what: str, places: list[fx.Node]) -> str | None:
        for found in self._otherwise(what):
            reason = found.objection(places) if isinstance(found, Variant) else found
            if reason:
                return reason
        return None

    def _flip(self, what: str) -> list[Variant | str]:
        """Record anew with a question of a line answered otherwise: each time, and the first time.

        One line may decide for many modules, or several times for one (`max(x.shape) > 9`): where
        these runs are no others, each of its decisions is tried, and the same answer to all.
        """
        if len(self._flipped) >= _MAX_FLIPS:
            return [what]
        if what in self.recorder.others:
            return self._runs(Flip(what, _LONG, always=one) for one in self.recorder.others[what])
        frames = [frame for frame, asked in self.recorder.decisions if asked == what]
        count = len(frames)
        found = self._runs([Flip(what, count)])
        apart = {frame for frame in frames if _gives_tensors(frame)}
        asks_more = self._asked[what] > count  # `h == 9 and w == 9`
        if found and _agree(found) and len(apart) == count and not asks_more:
            return found  # no answer of one frame can make up for that of another
        if count > 1:
            found = [*self._runs([Flip(what)]), *found]
        if not _agree(found):
            return found
        flips = [Flip(what, skip=at) for at in range(1, min(count, _MOST_ON_A_LINE))]
        flips += [Flip(what, _LONG, always=answer) for answer in (True, False)]
        return [*found, *self._runs(flips)]

    def _runs(self, flips: Iterable[Flip]) -> list[Variant | str]:
        return [run for flip in flips if (run := self._run_flipped(flip)) is not None]

    def _run_flipped(self, flip: Flip) -> Variant | str | None:
        try:
            found = self.again.run(self.arguments, flip=flip)
        except Exception as error:
            return None if _is_refusal(error) else flip.what
        times = sum(asked == flip.what for _, asked in found.decisions)
        self._asked[flip.what] = max(self._asked[flip.what], times)
        return Variant(flip.what, self.first, self.root, found)

    # ranks

    def _other_rank(self, places: list[fx.Node]) -> str | None:
        """Say why a norm of rows, (N, C), is not part of a linear layer if it may see (N, L, C).

        A linear layer works along the last axis, the norm along the second.
        """
        for node in places:
            shape = self.recorder.shapes.get(node, ())
            if len(shape) == 2 and self._is_norm(node) and not self.calls_known:
                if shape[1] not in self._deeper:
                    self._deeper[shape[1]] = self._one_axis_more(shape[1])
                found = self._deeper[shape[1]]
                if found is not None and self._rank(found, node) != 2:
                    return _OTHER_AXIS
        return None

    def _is_norm(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return layer_class(submodule(self.recorder.root, str(node.target))) in _ROW_NORMS
        call = canonical(node)
        return call is not None and call.name in _NORM_CALLS

    def _one_axis_more(self, size: int) -> tuple[Recorder, Variant] | None:
        """Record the root on inputs with one axis more, of this many entries, if it takes them."""
        other = partial(shaped, change=partial(with_axis, size=size))
        try:
            found = self.again.run(map_tree(other, self.arguments))
        except Exception:  # then the code takes no such input
            return None
        for node in found.graph.nodes:  # a recording does not run norms
            if node.op == "call_module" and self._is_norm(node):
                norm = submodule(self.recorder.root, str(node.target))
                if found.shapes[node][1] != cast(_BatchNorm, norm).num_features:
                    return None
        return found, Variant("", self.first, self.root, found)

    def _rank(self, found: tuple[Recorder, Variant], node: fx.Node) -> int | None:
        shape = found[1].shape(node)
        return None if shape is None else len(shape)

    # other arguments

    def _argued(self, places: list[fx.Node]) -> str | None:
        for found in self.optional():
            if isinstance(found, Variant):
                reason = found.objection(places)
            else:
                frames = self._given(found.name, found.value)
                reaches = any(self._reaches(frame, places) for frame in frames)
                reason = found.what if reaches else None
            if reason:
                return reason
        return None

    def _given(self, name: str, value: Any) -> list[Frame]:
        """Return the root, and the frames below it that are given a value of its arguments.

        None is given to many for other reasons: there the argument has to have the same name, and
        the code to branch on it.
        """
        found = [self.root]
        for frame in walk(self.root):
            if name and frame.parent in found and _is_given(frame, name, value):
                found.append(frame)
        return found

    def optional(self) -> list[Variant | Unknown]:
        """Return the runs with other arguments than the recorded ones, or which are not known."""
        if self._optional is None:
            self._optional = [] if self.calls_known else list(self._other_arguments())
        return self._optional

    def elsewhere(self) -> dict[fx.Node, str]:
        """Return the values that another run of the code reads elsewhere than this one."""
        found: dict[fx.Node, str] = {}
        runs = [*self.variants, *(v for v in self.optional() if isinstance(v, Variant))]
        for variant in (variant for variant in runs if variant.differs):
            for node in self.first.order:
                if node in variant.same and not variant.read_by_same(node):
                    found.setdefault(node, variant.what)
        return found

    def _other_arguments(self) -> Iterable[Variant | Unknown]:
        args, kwargs = self.arguments
        signature = inspect.signature(self.recorder.root.forward)
        bound = signature.bind(*args, **kwargs).arguments
        parameters = signature.parameters
        if any(parameters[key].kind in _OPEN for key in bound):
            yield from self._more_or_fewer(args, kwargs)
            return
        named = dict(bound)
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            yield from self._flagged(named)
        first = next((leaf for leaf in leaves(self.arguments) if isinstance(leaf, Tensor)), None)
        for parameter in parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                for name in keywords_read(self.recorder.root.forward, parameter.name):
                    what = f"its keyword argument {name} may be given"
                    yield from self._try(
                        [{**named, name: v} for v in (True, tensor_like(first))], what
                    )
            elif parameter.default is not parameter.empty or parameter.name in named:
                yield from self._one_argument(parameter, named, first)

    def _more_or_fewer(self, args: tuple[Any, ...], kwargs: Any) -> Iterable[Variant | Unknown]:
        """Call a forward that takes any number of arguments with one more and with one less."""
        for other in ((*args, *args[-1:]), args[:-1]):
            what = f"it may be called with {len(other)} arguments"
            try:
                found = self.again.run((other, kwargs))
            except Exception:  # then it takes no such number
                continue
            yield Variant(what, self.first, self.root, found)

    def _flagged(self, named: dict[str, Any]) -> Iterable[Variant | Unknown]:
        """Ask for more results, by flags that a Hugging Face model takes among its keywords."""
        for name in _FLAGS:
            if hasattr(getattr(self.recorder.root, "config", None), name):
                call = {**named, name: True}
                yield from self._try([call], f"{name} may be asked for", is_sure=True)

    def _one_argument(
        self, parameter: inspect.Parameter, named: dict[str, Any], first: Tensor | None
    ) -> Iterable[Variant | Unknown]:
        name, default = parameter.name, parameter.default
        what, value = f"its optional argument {name} may be given", named.get(name, default)
        if default is parameter.empty:
            what = f"its argument {name} may have another value"
        elif name in named and not is_default(value, default):
            left = {key: value for key, value in named.items() if key != name}
            what = f"its optional argument {name} may be left out"
            yield from self._try([left], what, is_sure=True)
        if _holds_tensors(value) or not mentions(self.recorder.root.forward, name):
            return
        others: list[Any] = []
        if value is None:
            tried = ({**named, name: other} for other in tensors_like(first))
            [found] = self._try(tried, what)
            if isinstance(found, Unknown) and first is not None:  # it may ask for the numbers
                numbers = map_tree(numbered, named)
                tried = ({**numbers, name: other} for other in ones_like(first))
                [found] = self._try(tried, what, real=True)
            if isinstance(found, Variant):
                yield found
                return
            others.append(sides_like(first))
        code = [getattr(frame.module, frame.method) for frame in self._given(name, value)]
        others += other_values(value, code)
        tried = [found for v in others for found in self._try([{**named, name: v}], what)]
        runs = [found for found in tried if isinstance(found, Variant)]
        yield from runs or [Unknown(what, name, value)]

    def _try(
        self,
        calls: Iterable[dict[str, Any]],
        what: str,
        *,
        is_sure: bool = False,
        **options: Any,
    ) -> Iterable[Variant | Unknown]:
        """Record the first of these calls that runs; where `is_sure`, one that fails is wrong."""
        for call in calls:
            try:
                found = self.again.run(((), call), **options)
            except Exception as error:
                if is_sure and not isinstance(error, RecordError):
                    return
                continue
            yield Variant(what, self.first, self.root, found)
            return
        yield Unknown(what)


def _child(frame: Frame, part: Item | None) -> str:
    """Return the name of the child of a frame's module that a part of the frame calls or reads."""
    path = part.path if isinstance(part, Frame) else str(part.target) if part is not None else ""
    prefix = f"{frame.path}." if frame.path else ""
    return path.removeprefix(prefix).partition(".")[0]


def _is_given(frame: Frame, name: str, value: Any) -> bool:
    if value is None:
        is_named = name in frame.kwargs and frame.kwargs[name] is None
        return is_named and branches_on(getattr(frame.module, frame.method), name)
    return any(is_default(leaf, value) for leaf in leaves((frame.args, frame.kwargs)))


def _agree(found: list[Variant | str]) -> bool:
    """Say whether all these runs are like the recorded one."""
    return not any(isinstance(run, str) or run.differs for run in found)


def _gives_tensors(frame: Frame) -> bool:
    return all(isinstance(leaf, fx.Node) for leaf in leaves(frame.output))


def _holds_tensors(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in leaves(value))


def _named(variant: Variant, places: list[fx.Node]) -> str:
    return next((f.path or "the model" for f in variant.differs), str(places[0]))


def _is_refusal(error: Exception) -> bool:
    """Say whether the model's own code raised an error on purpose."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    line = linecache.getline(trace.tb_frame.f_code.co_filename, trace.tb_lineno).strip()
    return re.search(r"\b(raise|assert)\b", line) is not None
