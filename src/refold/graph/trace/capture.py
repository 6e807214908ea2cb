"""Capture a model as flat graphs: the whole of it, or every largest part that can be traced."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import fx, nn

from refold.errors import InputError
from refold.graph.copies.modules import submodule
from refold.graph.copies.skeleton import held_tensors, skeleton, storage_key
from refold.graph.trace.aliases import effects
from refold.graph.trace.evidence import Evidence
from refold.graph.trace.examples import drawn, made_examples
from refold.graph.trace.frames import Frame, walk
from refold.graph.trace.leaves import is_layer, one_line, pinned_reason, untraceable_reason
from refold.graph.trace.proxies.tracer import RefoldTracer
from refold.graph.trace.recorder import Recorder
from refold.graph.trace.recording import Arguments, Seen, TraceError, again, record
from refold.graph.trace.state import Attributes, Changes, StateChangeError

_ONE_BY_ONE = "its parent may run its children one by one"


@dataclass(frozen=True)
class _Use:
    """One read of `self.<name>` in a class.

    Args:
        name: the attribute.
        method: the method that reads it.
        call: the call of the attribute, if it is one.
        member: what is read off the attribute, if anything is.
    """

    name: str
    method: str
    call: ast.Call | None
    member: str | None


def doubt(parent: nn.Module, name: str, child: nn.Module, called: set[str]) -> str | None:
    """Return why unseen code may call `parent.name` otherwise than a capture assumes, or None.

    Args:
        parent: a module that could not be traced.
        name: the name of its child.
        child: the child.
        called: the children that the failed trace saw being called.

    Examples:
        >>> doubt(nn.ModuleList([nn.Sequential()]), "0", nn.Sequential(), set()) is None
        True
    """
    known = _uses_in_forward(type(parent))
    if known is None:  # a trace that failed has not seen what comes after it
        return _ONE_BY_ONE if isinstance(child, nn.Sequential) else _given(_optional(child))
    uses = [use for use in known if use.name == name]
    if any(_reaches_in(use, child) for use in uses):
        return _ONE_BY_ONE
    is_item = isinstance(parent, nn.ModuleList | nn.ModuleDict | nn.Sequential)
    is_called = is_item or name in called or any(use.call for use in uses)
    if isinstance(child, nn.Sequential) and not is_called:
        return _ONE_BY_ONE
    calls = [use.call for use in uses if use.call is not None]
    is_plain = bool(calls) and not any(_gives_more(call, child) for call in calls)
    if is_plain or isinstance(parent, nn.Sequential):
        return None
    return _given(_optional(child))


def doubt_of_calls(graph: fx.Graph, path: str, module: nn.Module) -> str | None:
    """Return why the calls of a leaf in a graph are none that its own capture stands for, or None.

    Examples:
        >>> class Scale(nn.Module):
        ...     def forward(self, x, by=1.0):
        ...         return x * by
        >>> graph = fx.Graph()
        >>> call = graph.call_module("scale", (graph.placeholder("x"),), {"by": 2.0})
        >>> doubt_of_calls(graph, "scale", Scale())
        'its optional argument by may be given'
    """
    optional = _optional(module)
    if not optional:
        return None
    signature = inspect.signature(module.forward)
    for node in graph.nodes:
        if node.op != "call_module" or node.target != path:
            continue
        try:
            bound = signature.bind(*node.args, **node.kwargs).arguments
        except TypeError:  # a call that fails, as it should
            continue
        for name in optional:
            default = signature.parameters[name].default
            if name in bound and not _is_same(bound[name], default):
                return _given([name])
    return None


def _is_same(value: Any, default: Any) -> bool:
    plain = (bool, int, float, str, type(None))
    return type(value) is type(default) and isinstance(value, plain) and value == default


def _given(names: list[str]) -> str | None:
    if not names:
        return None
    several = len(names) > 1
    return f"its optional argument{'s' if several else ''} {' and '.join(names)} may be given"


def _optional(module: nn.Module) -> list[str]:
    """Return the arguments of a module's forward that have a default."""
    if untraceable_reason(module) is not None:
        return []
    parameters = inspect.signature(module.forward).parameters.values()
    return [p.name for p in parameters if p.default is not p.empty]


def _reaches_in(use: _Use, child: nn.Module) -> bool:
    """Say whether code may run a part of a child by itself."""
    if use.call is not None:
        return False
    if use.member is None:
        return isinstance(child, nn.Sequential)  # indexed, looped over or handed on
    if use.member in child._modules:
        return True
    return "children" in use.member or "modules" in use.member


def _gives_more(call: ast.Call, child: nn.Module) -> bool:
    """Say whether a call may give an argument that has a default."""
    parameters = inspect.signature(child.forward).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty]
    if any(isinstance(value, ast.Starred) for value in call.args):
        return True
    named = [keyword.arg for keyword in call.keywords]
    return len(call.args) + len(named) > len(required) or any(n not in required for n in named)


@functools.lru_cache(maxsize=256)
def _uses_in_forward(kind: type) -> tuple[_Use, ...] | None:
    """Return the reads of attributes in a class's forward and the methods it uses, if known."""
    found = [_uses(base) for base in kind.__mro__]
    if any(part is None for part in found):
        return None
    uses = [use for part in found for use in part or ()]
    reached, pending = set[str](), ["forward"]
    while pending:
        method = pending.pop()
        if method not in reached:
            reached.add(method)
            pending.extend(use.name for use in uses if use.method == method)
    return tuple(use for use in uses if use.method in reached)


@functools.lru_cache(maxsize=256)
def _uses(kind: type) -> tuple[_Use, ...] | None:
    """Return every read of `self.<name>` in the methods of a class, None without its source."""
    if kind is object or kind.__module__.startswith("torch."):
        return ()
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):
        return None
    return tuple(_uses_in(tree))


def _uses_in(tree: ast.Module) -> Iterator[_Use]:
    methods = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for method in methods:
        if method.name == "__init__" or not method.args.args:
            continue
        this = method.args.args[0].arg
        parents = {id(low): high for high in ast.walk(method) for low in ast.iter_child_nodes(high)}
        for node in ast.walk(method):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == this:
                above = parents[id(node)]
                call = above if isinstance(above, ast.Call) and above.func is node else None
                member = above.attr if isinstance(above, ast.Attribute) else None
                yield _Use(node.attr, method.name, call, member)


_MAX_RETRACES = 16


@dataclass(eq=False)
class Capture:
    """One traced root and its flat graph.

    Args:
        path: path of the root in the model; `""` is the model itself.
        module: the root, in a throw-away structural copy of the model that shares its tensors.
        graph: the flat graph; targets are relative to `module`.
        root: the frame of the root call, with all frames below it.
        model: the whole throw-away copy that `module` is a part of.
        calls: how often each leaf module is called, in this capture and in all others of the model.
        opaque: leaves that are not torch.nn layers, and why they could not be traced through.
        pinned: torch.nn layers whose content must stay (hooks, parametrizations …), and why.
        changes: what the code of the model changes, one record for all its captures.
        foreign: tensors held by leaves of unseen code, by storage, each with the reason.
        shapes: the shapes of the values, where a recording told them.
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
    shapes: dict[fx.Node, tuple[int, ...]] | None = None
    evidence: Evidence | None = None
    stays: dict[fx.Node, str] = field(default_factory=dict[fx.Node, str])
    elsewhere: dict[fx.Node, str] = field(default_factory=dict[fx.Node, str])

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
        """Return a GraphModule over the copy, to interpret or to propagate shapes.

        The graph is copied: later edits of `graph` do not change the result. The modules share
        their tensors with the caller's; give another `module` of the same structure to run code
        that may write to them.
        """
        graph = fx.Graph()
        graph.output(graph.graph_copy(self.graph, {}))
        return fx.GraphModule(self.module if module is None else module, graph)


@dataclass(eq=False)
class Captures:
    """All captures of a model, and the parts that could not be followed at all, with the reason."""

    captures: list[Capture]
    failures: dict[str, str]


def capture(model: nn.Module) -> list[Capture]:
    """Return the captures of `model`; see `capture_all`.

    Examples:
        >>> [found] = capture(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))
        >>> [node.op for node in found.graph.nodes]
        ['placeholder', 'call_module', 'call_module', 'output']
    """
    return capture_all(model).captures


def capture_all(model: nn.Module, example: tuple[Any, ...] | None = None) -> Captures:
    """Record `model`, or every largest submodule of it that can be traced.

    Leaves that could not be traced through, and submodules that no capture has run, are captured on
    their own. No module is folded twice: a module under two names belongs to one capture. A capture
    comes after those that lie inside its root: edits are committed in this order.

    Args:
        model: any module; it is not changed.
        example: positional arguments to run it on; without them some are made, and where the model
            takes none of these, it is traced.

    Raises:
        InputError: when the model cannot be copied.
    """
    if not isinstance(cast(object, model), nn.Module):
        raise InputError(f"expected an nn.Module, got {type(model).__name__}")
    search = _Search(skeleton(model), None if example is None else (example, {}))
    if example is None and untraceable_reason(search.root) is None:
        search = _on_made_example(model, search)
    search.visit("", search.root)
    search.count_across()
    search.note_effects()
    # What was followed on its own says itself what stays in it.
    followed = {found.path for found in search.captures}
    failures = {path: why for path, why in search.failures.items() if path not in followed}
    return Captures(search.captures, failures)


def _on_made_example(model: nn.Module, plain: _Search) -> _Search:
    """Return a search that runs the model on an example of our own, if it takes one."""
    for example in made_examples(plain.root):
        search = _Search(skeleton(model), (example, {}), is_made=True)
        try:
            search.whole = record_root("", search.root, search, (example, {}))
        except TraceError as error:
            if not error.is_followed:
                continue
            search.arguments = (tuple(drawn(value) for value in example), {})
        return search
    return plain


class _Search:
    """The walk over the model: captures found so far and which modules they cover."""

    def __init__(
        self, root: nn.Module, arguments: Arguments | None = None, *, is_made: bool = False
    ) -> None:
        self.root, self.arguments, self.is_made = root, arguments, is_made
        self.seen = Seen()
        self.known: set[int] = set()  # modules that are called in no other way than was seen
        self.whole: Capture | None = None  # the root's, where it is known before the walk
        self.captures: list[Capture] = []
        self.failures: dict[str, str] = {}
        self.visited: set[int] = set()
        self.covered: set[int] = set()
        self.framed: set[int] = set()
        self.changes = Changes()

    def visit(self, path: str, module: nn.Module) -> None:
        """Capture `module`, or its children when it cannot be traced."""
        if id(module) in self.visited or is_layer(module):
            return
        self.visited.add(id(module))
        found, called = self._attempt(path, module)
        if found is None:
            self._children(path, module, called)
            return
        self._cover(found)
        for leaf, reason in found.opaque.items():
            below, child = found.full(leaf), submodule(module, leaf)
            self.failures[below] = reason
            reason = doubt_of_calls(found.graph, leaf, child)
            if reason is None and found.evidence is not None and not found.evidence.variants:
                self.known.add(id(child))
            self._visit_unless(reason, below, child)
        self._uncovered(path, module)
        self.captures.append(found)  # after what lies inside it

    def _attempt(self, path: str, module: nn.Module) -> tuple[Capture | None, set[str]]:
        if isinstance(module, nn.ModuleList | nn.ModuleDict):
            return None, set()
        reason = untraceable_reason(module) or self.changes.assigned.get(id(module))
        if reason is not None:
            self.failures[path] = reason
            return None, set()
        try:
            return self._followed(path, module), set()
        except TraceError as error:
            self.failures[path] = str(error)
            return None, error.called

    def _followed(self, path: str, module: nn.Module) -> Capture:
        if module is self.root and self.whole is not None:
            return self.whole
        if module is self.root and self.arguments is not None:
            return record_root(path, module, self, self.arguments, real=True)
        if calls := self.seen.calls.get(id(module)):
            known = id(module) in self.known
            return record_root(path, module, self, calls[0], calls_known=known)
        return trace_root(path, module, self.root, self.changes)

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
        """Visit the largest submodules that the trace of their ancestor never ran."""
        for name, child in module.named_children():
            below = f"{path}.{name}" if path else name
            if id(child) in self.covered or any(id(m) in self.covered for m in child.modules()):
                if id(child) not in self.visited or id(child) in self.framed:
                    self._uncovered(below, child)
            elif any(True for _ in child.parameters()):
                self._child(below, child, module, set())

    def count_across(self) -> None:
        """Make `calls` count the calls of a module under all its names in all captures."""
        total: dict[int, int] = {}
        for found in self.captures:
            for path, count in found.calls.items():
                key = id(submodule(found.module, path))
                total[key] = total.get(key, 0) + count
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
) -> Capture:
    """Record one module of a skeleton as a root; `real` arguments hold numbers.

    Raises:
        TraceError: when its own forward cannot be followed.
    """
    leaves = _assigned(module, search.changes)
    found = record(module, search.changes, leaves, arguments, search.seen, real=real)
    made = _made(path, module, search.root, search.changes, found)
    made.shapes = None if search.is_made else found.shapes
    made.evidence = Evidence(found, again(found), arguments, calls_known=calls_known)
    made.evidence.vary()
    made.stays, made.elsewhere = made.evidence.stays(), made.evidence.elsewhere()
    return made


def _made(
    path: str,
    module: nn.Module,
    model: nn.Module,
    changes: Changes,
    tracer: Recorder | RefoldTracer,
) -> Capture:
    pinned = {
        leaf: reason
        for leaf in tracer.calls
        if is_layer(target := submodule(module, leaf))
        and (reason := pinned_reason(target) or changes.assigned.get(id(target))) is not None
    }
    opaque = {leaf: reason for leaf, reason in tracer.opaque.items() if leaf in tracer.calls}
    root = cast(Frame, tracer.root_frame)
    calls, foreign = dict(tracer.calls), _foreign(module, opaque)
    graph = tracer.graph
    return Capture(path, module, graph, root, model, calls, opaque, pinned, changes, foreign)


def trace_root(path: str, module: nn.Module, model: nn.Module, changes: Changes) -> Capture:
    """Trace one module of a skeleton of `model` as a root; note in `changes` what its code changes.

    Raises:
        TraceError: when its own forward cannot be traced.
    """
    leaves: dict[str, str] = {}
    for _ in range(_MAX_RETRACES):
        leaves.update(_assigned(module, changes))
        tracer = RefoldTracer(leaves, changes=changes)
        _trace(tracer, module)
        if not tracer.repeated:
            break
        leaves = {**leaves, **tracer.opaque, **tracer.repeated}
    else:
        raise TraceError("modules are called again and again in new ways", set())
    return _made(path, module, model, changes, tracer)


def _assigned(root: nn.Module, changes: Changes) -> dict[str, str]:
    """Return the modules below a root whose attributes code outside them sets, with the reason."""
    if not changes.assigned:
        return {}
    named = ((path, changes.assigned.get(id(m))) for path, m in root.named_modules() if path)
    return {path: reason for path, reason in named if reason is not None}


def _foreign(root: nn.Module, opaque: dict[str, str]) -> dict[int, str]:
    """Return the tensors that leaves of unseen code hold, and may change, by storage."""
    return {
        storage_key(tensor): f"the code of {path}, which could not be followed, may change it"
        for path in opaque
        for module in submodule(root, path).modules()
        for _, tensor in held_tensors(module)
    }


def _trace(tracer: RefoldTracer, module: nn.Module) -> fx.Graph:
    reasons: list[str] = []
    called: set[str] = set()
    for buffers in (True, False):
        tracer.reset(buffers=buffers)
        with _Restored(module) as state:
            try:
                graph = tracer.trace(module)
                _must_be_unchanged(tracer, state.attributes)
                state.keep_constants()
                return graph
            except StateChangeError as error:
                called |= tracer.entered
                tracer.note_writes()
                raise TraceError(str(error), called) from error
            except Exception as error:  # any model code may raise anything while it is traced
                reasons.append(one_line(error))
                called |= tracer.entered
                tracer.note_writes()
    raise TraceError(reasons[0], called)


def _must_be_unchanged(tracer: RefoldTracer, attributes: Attributes) -> None:
    """Raise where traced code changed an attribute in a way that the tracer did not see."""
    opaque = {id(m) for path in tracer.opaque for m in submodule(tracer.root, path).modules()}
    for module, name in attributes.changed():
        seen = (id(module), name) in tracer.was_set or "_constant" in name
        if not seen and id(module) not in opaque:
            reason = f"its code changes {name} of a {type(module).__name__} for the next call"
            tracer.changes.assigned.setdefault(id(module), reason)
            raise StateChangeError(reason)


class _Restored:
    """Keeps a trace from changing anything: traced code may store values on self."""

    def __init__(self, root: nn.Module) -> None:
        self.attributes = Attributes(root)
        self.constants: dict[str, Any] = {}

    def keep_constants(self) -> None:
        """Keep the tensors that the trace stored on the root, to be read by its graph."""
        root = self.attributes.root
        names = set(root.__dict__) - self.attributes.names(root)
        self.constants = {
            name: root.__dict__[name]
            for name in names
            if name.startswith("_") and "_constant" in name
        }

    def __enter__(self) -> _Restored:
        self.grad = torch.is_grad_enabled()
        torch.set_grad_enabled(True)  # so that a `with torch.no_grad()` in the model shows
        return self

    def __exit__(self, *exc: object) -> None:
        torch.set_grad_enabled(self.grad)
        self.attributes.restore()
        self.attributes.root.__dict__.update(self.constants)


def leaf_modules(found: Capture) -> Iterator[tuple[fx.Node, nn.Module]]:
    """Yield every `call_module` node of a capture with its module."""
    for node in found.graph.nodes:
        if node.op == "call_module":
            yield node, submodule(found.module, cast(str, node.target))
