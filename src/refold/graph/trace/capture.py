"""Capture a model as flat graphs: the whole of it, or every largest part that can be recorded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Any, cast

import torch
from torch import fx, nn

from refold.errors import InputError
from refold.graph.copies.held import held_tensors, storage_key
from refold.graph.copies.modules import all_modules, modules_by_path, submodule
from refold.graph.copies.skeleton import skeleton
from refold.graph.copies.ties import Ties
from refold.graph.trace.aliases import effects
from refold.graph.trace.arguments import parted
from refold.graph.trace.code.reads import may_run, reached
from refold.graph.trace.doubts import doubt, doubt_of_calls
from refold.graph.trace.examples import drawn, is_spread, made_examples
from refold.graph.trace.frames import Frame, nodes_in, walk
from refold.graph.trace.leaves import is_layer, pinned_reason, untraceable_reason
from refold.graph.trace.other_runs.evidence import Evidence
from refold.graph.trace.recorder.recorder import Recorder
from refold.graph.trace.recording import Again, Arguments, Runs, Seen, TraceError, record
from refold.graph.trace.state import Changes
from refold.graph.trace.surroundings import surroundings_kept
from refold.graph.trace.unrun import unrun

Shapes = dict[fx.Node, tuple[int, ...]]
_UNKNOWN = "no input that it takes could be made up; give example_inputs"


@dataclass(eq=False)
class Capture:
    """One recorded root and its flat graph.

    Args:
        path: path of the root in the model; `""` is the model itself.
        module: the root, in a throw-away structural copy of the model that shares its tensors.
        graph: the flat graph; targets are relative to `module`.
        root: the frame of the root call, with all frames below it.
        model: the whole throw-away copy that `module` is a part of.
        calls: how often each leaf module is called, in this capture and in all others of the model.
        opaque: leaves that are not torch.nn layers, and why they could not be followed.
        pinned: torch.nn layers whose content must stay (hooks, parametrizations …), and why.
        changes: what the code of the model changes, one record for all its captures.
        foreign: tensors held by leaves of unseen code, by storage, each with the reason.
        shapes: the shapes of the values; empty where the root ran on an input that was made up.
        evidence: other runs of the same code.
        stays: calls whose code no fold can write anew, with the reason.
        elsewhere: values that other runs of the code read elsewhere, with the reason.
    """

    path: str
    module: nn.Module
    graph: fx.Graph
    root: Frame
    model: nn.Module
    calls: dict[str, int]
    opaque: dict[str, str] = field(default_factory=dict[str, str])
    pinned: dict[str, str] = field(default_factory=dict[str, str])
    changes: Changes = field(default_factory=Changes)
    foreign: dict[int, str] = field(default_factory=dict[int, str])
    shapes: Shapes = field(default_factory=dict[fx.Node, tuple[int, ...]])
    evidence: Evidence | None = None
    stays: dict[fx.Node, str] = field(default_factory=dict[fx.Node, str])
    elsewhere: dict[fx.Node, str] = field(default_factory=dict[fx.Node, str])

    @cached_property
    def ties(self) -> Ties:
        """The stored tensors of the whole model that share their values."""
        return Ties(self.model)

    def changing(self, tensor: torch.Tensor) -> str | None:
        """Return why a stored tensor may be another one at the next call, or None."""
        if not self.changes.written and not self.foreign:
            return None
        key = storage_key(tensor)
        return self.changes.written.get(key) or self.foreign.get(key)

    def full(self, path: str) -> str:
        """Return the path in the whole model of a path relative to the root."""
        return ".".join(part for part in (self.path, path) if part)

    def graph_module(self, module: nn.Module | None = None) -> fx.GraphModule:
        """Return a GraphModule over the copy, to interpret.

        The graph is copied: later edits of `graph` do not change the result. The modules share
        their tensors with the caller's; give another `module` of the same structure to run code
        that may write to them.
        """
        graph = fx.Graph()
        graph.output(graph.graph_copy(self.graph, {}))
        return fx.GraphModule(self.module if module is None else module, graph)


@dataclass(eq=False)
class Captures:
    """All captures of a model.

    Args:
        captures: inner ones first.
        failures: the parts that could not be followed at all, with the reason.
        unrun: the largest parts that a run of the whole model never touched.
        made_up: what the whole model was run on where nobody gave an example.
        alone: captured parts that no run of the whole model is known to call, each with what it was
            recorded on.
    """

    captures: list[Capture]
    failures: dict[str, str]
    unrun: list[str] = field(default_factory=list[str])
    made_up: tuple[Any, ...] | None = None
    alone: dict[str, Arguments] = field(default_factory=dict[str, Arguments])


def capture(model: nn.Module, example: tuple[Any, ...] | None = None) -> list[Capture]:
    """Return the captures of `model`; see `capture_all`.

    Examples:
        >>> [found] = capture(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))
        >>> [node.op for node in found.graph.nodes]
        ['placeholder', 'call_module', 'call_module', 'output']
    """
    return capture_all(model, example).captures


def capture_all(
    model: nn.Module,
    example: tuple[Any, ...] | None = None,
    *,
    to_edit: bool = True,
    to_fold: bool = False,
    runs: Runs | None = None,
) -> Captures:
    """Record `model`, or every largest submodule of it that can be recorded.

    Leaves that could not be followed, and submodules that no capture has run, are captured on
    their own. No module is folded twice: a module under two names belongs to one capture. A capture
    comes after those that lie inside its root: edits are committed in this order.

    Args:
        model: any module; it is not changed.
        example: positional arguments to run it on; without them, and for the parts that they do
            not reach, some are made up.
        to_edit: forwards will be written from the captures: their code is recorded on arguments
            of other shapes and precision, too.
        to_fold: what methods of the model return is to stay the same, too.
        runs: those of earlier captures of the same model on the same example.

    Raises:
        InputError: when the model cannot be copied.
    """
    if not isinstance(cast(object, model), nn.Module):
        raise InputError(f"expected an nn.Module, got {type(model).__name__}")
    arguments = None if example is None else parted(example)
    with surroundings_kept(model) as around:
        changes = Changes(around=around)
        search = _Search(model, arguments, changes, runs or Runs(), to_edit=to_edit)
        search.to_fold = to_fold
        search.visit("", search.root)
    search.count_across()
    search.note_effects()
    ties = Ties(search.root)
    for found in search.captures:
        found.ties = ties  # looked for once, not for every part
    # What was followed on its own says itself what stays in it.
    followed = {found.path for found in search.captures}
    failures = {path: why for path, why in search.failures.items() if path not in followed}
    return Captures(search.captures, failures, search.unrun, search.made_up, search.alone())


class _Search:
    """The walk over the model: captures found so far and which modules they cover."""

    def __init__(
        self,
        model: nn.Module,
        arguments: Arguments | None,
        changes: Changes,
        runs: Runs,
        *,
        to_edit: bool,
    ) -> None:
        self.model, self.root = model, skeleton(model)
        self.arguments, self.to_edit, self.runs = arguments, to_edit, runs
        self.seen = Seen()
        self.known: set[int] = set()  # modules that are called in no other way than was seen
        self.captures: list[Capture] = []
        self.failures: dict[str, str] = {}
        self.visited: set[int] = set()
        self.covered: set[int] = set()
        self.framed: set[int] = set()
        self.changes, self.to_fold = changes, False
        self.unrun: list[str] = []
        self.made_up: tuple[Any, ...] | None = None
        self._names: dict[int, list[str]] | None = None
        self._may_run = cache(partial(may_run, self.root))

    def visit(self, path: str, module: nn.Module) -> None:
        """Capture `module`, or its children when it cannot be followed."""
        if id(module) in self.visited or is_layer(module):
            return
        self.visited.add(id(module))
        found, called = self._attempt(path, module)
        if found is None:
            self._children(path, module, called)
            return
        self._cover(found)
        if module is self.root:
            self.unrun = unrun(module, self.seen.ran, self.seen.reads)
        for leaf, reason in found.opaque.items():
            below, child = found.full(leaf), submodule(module, leaf)
            self.failures[below] = reason
            reason = doubt_of_calls(found.graph, leaf, child)
            if reason is None and found.evidence is not None and not found.evidence.variants:
                self.known.add(id(child))
            self._visit_unless(reason, below, child)
        self._uncovered(path, module)
        # What was captured under another name before runs as a part of this one.
        parts = {id(frame.module) for frame in walk(found.root)}
        self.captures = [other for other in self.captures if id(other.module) not in parts]
        self.captures.append(found)  # after what lies inside it

    def _attempt(self, path: str, module: nn.Module) -> tuple[Capture | None, set[str]]:
        reason = untraceable_reason(module) or self.changes.assigned.get(id(module))
        if reason is not None:
            if not isinstance(module, nn.ModuleList | nn.ModuleDict):
                self.failures[path] = reason
            return None, set()
        if len(self.seen.calls.get(id(module), ())) == 1 and id(module) in self.seen.asks:
            self.failures[path] = self.seen.asks[id(module)]  # without numbers it cannot run
            ran = self.seen.calls
            return None, {below for below, part in modules_by_path(module) if id(part) in ran}
        try:
            return self._followed(path, module), set()
        except TraceError as error:
            if module is self.root and error.is_whole:
                self.unrun = unrun(module, self.seen.ran, self.seen.reads)
            self.failures[path] = str(error)
            return None, error.called

    def _followed(self, path: str, module: nn.Module) -> Capture:
        if module is self.root and self.arguments is not None:
            return record_root(path, module, self, self.arguments, real=True)
        if calls := self.seen.calls.get(id(module)):
            known = id(module) in self.known
            return record_root(path, module, self, calls[0], calls_known=known)
        return self._made_up(path, module)

    def _made_up(self, path: str, module: nn.Module) -> Capture:
        """Record a root that nothing has called, on an input of our own that it takes."""
        reason, called = _UNKNOWN, set[str]()
        for example in made_examples(module):
            known = dict(self.seen.calls)
            try:
                found = self._on(path, module, example)
            except TraceError as error:
                if error.is_followed:
                    raise
                reason, called = f"{_UNKNOWN} ({error})", error.called
                self.seen.calls = known
            else:
                self.made_up = example if module is self.root else self.made_up
                return found
            finally:
                self.seen.made_up.update(self.seen.calls.keys() - known.keys())
        raise TraceError(reason, called)

    def _on(self, path: str, module: nn.Module, example: tuple[Any, ...]) -> Capture:
        """Record a root on an example without numbers, and on some where its code asks for them."""
        try:
            return record_root(path, module, self, (example, {}), made_up=True)
        except TraceError as error:
            if not error.is_followed:
                raise
        numbers = tuple(drawn(value) for value in example)
        try:
            return record_root(path, module, self, (numbers, {}), real=True, made_up=True)
        except InputError as error:
            raise TraceError(str(error), set(), is_followed=True) from error

    def _children(self, path: str, module: nn.Module, called: set[str]) -> None:
        for name, child in module.named_children():
            self._child(f"{path}.{name}" if path else name, child, module, called)

    def _child(self, below: str, child: nn.Module, parent: nn.Module, called: set[str]) -> None:
        if id(child) in self.visited or is_layer(child):
            return
        reason = doubt(parent, below.rpartition(".")[2], child, called)
        if reason is None:
            self.known.add(id(child))
        self._visit_unless(reason, below, child)

    def _visit_unless(self, reason: str | None, path: str, module: nn.Module) -> None:
        """Capture a module, or its children where a reason speaks against the whole."""
        if reason is None:
            self.visit(path, module)
        elif id(module) not in self.visited:
            self.visited.add(id(module))
            self.failures[path] = reason
            self._children(path, module, set())

    def _cover(self, found: Capture) -> None:
        for frame in walk(found.root):
            self.framed.add(id(frame.module))
        self.covered |= self.framed
        self.visited |= self.framed
        for path in found.calls:
            self.covered.add(id(submodule(found.module, path)))

    def _uncovered(self, path: str, module: nn.Module) -> None:
        """Visit the largest submodules that the run of their ancestor never called."""
        for name, child in module.named_children():
            below = f"{path}.{name}" if path else name
            if name == "parametrizations":  # they make the weights of a layer that ran
                continue
            if id(child) in self.covered or any(id(m) in self.covered for m in all_modules(child)):
                if id(child) not in self.visited or id(child) in self.framed:
                    self._uncovered(below, child)
            elif any(True for _ in child.parameters()):
                self._child(below, child, module, set())

    def alone(self) -> dict[str, Arguments]:
        """Return what the parts were recorded on that a run of the whole does not check."""
        runs_whole = self.arguments is not None or self.made_up is not None
        return {
            found.path: found.evidence.arguments
            for found in self.captures
            if found.evidence is not None
            and (not runs_whole or (found.path and id(found.module) in self.seen.made_up))
        }

    def runs_alone(self, path: str, module: nn.Module) -> dict[str, str]:
        """Return the parts of a root that code outside it may run too, with the reason.

        Args:
            path: where the root is in the model.
            module: the root.
        """
        found: dict[str, str] = {}
        inside = {id(part) for part in all_modules(module)} if path else set[int]()
        for below, part in modules_by_path(module) if path else ():
            for name in self._other_names(part):
                above, _, last = name.rpartition(".")
                holder = submodule(self.root, above)
                if id(holder) in inside or not self._may_run(name):
                    continue
                inner = [f"{below}.{key}" if below else key for key in reached(holder, last, part)]
                for place in [below, *inner] if below else inner:
                    found.setdefault(place, f"other code may run it, as {name} or in it")
        return found

    def _other_names(self, module: nn.Module) -> list[str]:
        """Return the paths of a module that stands at several, else none."""
        if self._names is None:
            self._names = {}
            for name, part in modules_by_path(self.root, every_name=True):
                self._names.setdefault(id(part), []).append(name)
        names = self._names.get(id(module), [])
        return names if len(names) > 1 else []

    def count_across(self) -> None:
        """Make `calls` count the calls of a module under all its names in all captures."""
        total: dict[int, int] = {}
        for found in self.captures:
            for path, count in found.calls.items():
                key = id(submodule(found.module, path))
                total[key] = total.get(key, 0) + count
        for found in self.captures:  # code that no run has followed may call it too
            for path in self.runs_alone(found.path, found.module).keys() & found.calls.keys():
                key = id(submodule(found.module, path))
                total[key] = max(total[key], 2)
        for found in self.captures:
            for path in found.calls:
                found.calls[path] = total[id(submodule(found.module, path))]

    def note_effects(self) -> None:
        """Tell the calls of leaves that have a capture of their own what that capture does."""
        known = {id(found.module): found for found in self.captures}
        for found in self.captures:  # inner captures come first
            for node in found.graph.nodes:
                if node.op == "call_module" and node.target in found.opaque:
                    inner = known.get(id(submodule(found.module, cast(str, node.target))))
                    if inner is not None and pinned_reason(inner.module) is None:
                        node.meta["effects"] = effects(inner.graph)


def record_root(
    path: str,
    module: nn.Module,
    search: _Search,
    arguments: Arguments,
    *,
    real: bool = False,
    calls_known: bool = False,
    made_up: bool = False,
) -> Capture:
    """Record one module of a skeleton as a root.

    Args:
        path: where it is in the model.
        module: the root.
        search: the walk that it belongs to.
        arguments: what to call it with.
        real: the arguments hold numbers.
        calls_known: no call of the root gives other arguments.
        made_up: nobody is known to call it with these arguments.

    Raises:
        TraceError: when its own forward cannot be followed.
    """
    leaves = {**search.runs_alone(path, module), **_assigned(module, search.changes)}
    found = record(module, search.changes, leaves, arguments, search.seen, real=real)
    made = _made(path, module, search.root, search.changes, found)
    if made_up:
        if is_spread(found.graph, found.shapes):
            raise TraceError("stored tensors add axes to it", set())
        search.seen.made_up.add(id(module))
    if id(module) not in search.seen.made_up:
        made.shapes = found.shapes
    if not search.to_edit:
        if search.to_fold and not path:
            _show_methods(found)
        return made
    again = Again(found, submodule(search.model, path), path, search.runs)
    made.evidence = Evidence(found, again, arguments, calls_known, made_up)
    made.evidence.vary()
    made.stays, made.elsewhere = made.evidence.stays(), made.evidence.elsewhere()
    if search.to_fold and not path:  # only now: other runs, which show none, were compared with it
        _show_methods(found)
    return made


def _show_methods(found: Recorder) -> None:
    """Make what methods of a model return a result: they may be called by themselves.

    Those are the public ones that are given what forward is given, as `forward_features` is.
    """
    root = found.root_frame
    given, shown = {*nodes_in((root.args, root.kwargs))}, list[fx.Node]()
    for frame in walk(root):
        is_own = frame.module is root.module and frame.method != "forward"
        values = {*nodes_in((frame.args, frame.kwargs))} if is_own else set[fx.Node]()
        if values and values <= given and not frame.method.startswith("_"):
            shown += nodes_in(frame.output)
    [output] = found.graph.find_nodes(op="output")
    shown = [node for node in dict.fromkeys(shown) if output not in node.users]
    stored = output.meta.get("stored values", 0)
    if shown:
        told, held = output.args[0] if stored else (output.args[0], [])
        output.args = ((told, [*held, *shown]),)
        output.meta["stored values"] = stored + len(shown)


def _made(
    path: str,
    module: nn.Module,
    model: nn.Module,
    changes: Changes,
    found: Recorder,
) -> Capture:
    pinned = {
        leaf: reason
        for leaf in found.calls
        if is_layer(target := submodule(module, leaf))
        and (reason := pinned_reason(target) or changes.assigned.get(id(target))) is not None
    }
    opaque = {leaf: reason for leaf, reason in found.opaque.items() if leaf in found.calls}
    root = found.root_frame
    calls, foreign = dict(found.calls), _foreign(module, opaque)
    graph = found.graph
    return Capture(path, module, graph, root, model, calls, opaque, pinned, changes, foreign)


def _assigned(root: nn.Module, changes: Changes) -> dict[str, str]:
    """Return the modules below a root whose attributes code outside them sets, with the reason."""
    if not changes.assigned:
        return {}
    named = ((path, changes.assigned.get(id(m))) for path, m in modules_by_path(root) if path)
    return {path: reason for path, reason in named if reason is not None}


def _foreign(root: nn.Module, opaque: dict[str, str]) -> dict[int, str]:
    """Return the tensors that leaves of unseen code hold, and may change, by storage."""
    return {
        storage_key(tensor): f"the code of {path}, which could not be followed, may change it"
        for path in opaque
        for module in submodule(root, path).modules()
        for _, tensor in held_tensors(module)
    }


def leaf_modules(found: Capture) -> Iterator[tuple[fx.Node, nn.Module]]:
    """Yield every `call_module` node of a capture with its module."""
    for node in found.graph.nodes:
        if node.op == "call_module":
            yield node, submodule(found.module, cast(str, node.target))
