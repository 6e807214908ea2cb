"""Record one run of a module: what it calls becomes a flat graph with frames.

The model's own code runs, on tensors without storage: to its code tensors are tensors, so that
whatever Python it asks (types, containers, exceptions, helpers) is answered as in any run.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase

from refold.graph.copies.held import storage_key
from refold.graph.copies.watching import (
    watched_attributes,
    watched_calls,
    watched_functions,
    watched_reads,
)
from refold.graph.trace.frames import Frame, handed, leaves, map_tree, odd_container, walk
from refold.graph.trace.leaves import (
    current_modes,
    drop_checks,
    helper_methods,
    is_layer,
    pinned_reason,
)
from refold.graph.trace.overridden import disguise
from refold.graph.trace.recorder.answers import Answers, versions
from refold.graph.trace.recorder.chance import Chance
from refold.graph.trace.recorder.environment import asked_around
from refold.graph.trace.recorder.flags import FlagNotes, readable_attributes
from refold.graph.trace.recorder.forms import result_of_layer
from refold.graph.trace.recorder.notebook import DEVICE_MARK, Conditions, Flip
from refold.graph.trace.recorder.sizes import Ratio, Size, plain
from refold.graph.trace.recorder.state_notes import StateNotes
from refold.graph.trace.recorder.steady import Form, form_of
from refold.graph.trace.recorder.torch_calls import RecordError, UnansweredError
from refold.graph.trace.state import Attributes, Changes, untouched
from refold.graph.trace.writes import stored_value, stored_writes


class Recorder(StateNotes):
    """Runs one module and notes what its code calls.

    Args:
        root: the module, part of a throw-away skeleton.
        leaves: paths to take as atomic, with the reason.
        changes: what code of the model changes; one record for all recordings of a model.
        real: compute with numbers, so that code which asks for them can go on; it is left opaque.
        elsewhere: as if the model were of this type and on another device.
        flip: the decisions about sizes to answer the other way round.

    `ran` holds the ids of the modules that were called, `reads` those of the tensors that calls
    were given.
    `late` holds the frames found out to be no frames (they ask for numbers, keep state, are called
    again): record anew with them in `leaves`.
    """

    def __init__(
        self,
        root: nn.Module,
        leaves: dict[str, str],
        changes: Changes,
        *,
        real: bool = False,
        flip: Flip | None = None,
        elsewhere: torch.dtype | None = None,
    ) -> None:
        super().__init__(root, changes, Conditions(real, flip, elsewhere))
        self.forced = leaves
        self.caught: dict[str, str] = {}
        self.calls: Counter[str] = Counter()
        self.seen: dict[int, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}
        self.is_whole = False  # the root's forward has come to its end
        self.ran: set[int] = set()
        self._framed: set[str] = set()
        self._passes = False  # within a part that needs no second look
        self._ours: list[tuple[dict[str, Any], str, Callable[..., Any]]] = []
        self._methods: dict[type, list[tuple[str, Any]]] = {}  # the helpers of each class
        self.chance: Chance | None = None  # set where Python's random numbers were seen to be drawn
        self.counts_only = False  # how often each layer is called, and the result: no graph
        self.steady: dict[str, Form] = {}  # parts that need no second look, if called in this form
        self.answers = Answers()  # of calls that the next run need not make again
        self._raised_by = (0, "")  # the id of the last error, and the part that raised it
        self.flags: FlagNotes | None = None  # set where what code reads of attributes matters

    # the run

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], before: Attributes) -> fx.Graph:
        """Run the root with these arguments and return its graph.

        Args:
            args: positional arguments.
            kwargs: arguments by name.
            before: the attributes of the root as they are now.

        Raises:
            RecordError: when the root itself is found out to be no frame.
        """
        root, modules, self.before = self.root, before.modules, before
        self._paths, self._stored_paths = before.paths, before.stored_paths
        own = root.__dict__.get("forward")
        forward = MethodType(type(root).forward, root) if own is None else own
        args, kwargs = self._inputs(forward, args, kwargs)
        self._paused = int(self.counts_only)
        self._keep_graphs(self.root_frame)
        self._watch_methods(root, "")
        watched = watched_attributes(modules, self.note_assignment)
        guard = untouched(root) if self.real else _nothing()
        grad = torch.is_grad_enabled()
        torch.set_grad_enabled(True)  # so that a `with torch.no_grad()` in the model shows
        try:
            calls, ways = watched_calls(modules, self._called), self._ways(modules)
            with guard, watched, calls, ways, self:
                self.result = forward(*args, **kwargs)
            self.is_whole = True
        finally:
            self._take_back()
            torch.set_grad_enabled(grad)
        return self.graph if self.counts_only else self._finish()

    @contextmanager
    def _ways(self, modules: list[nn.Module]) -> Generator[None]:
        """Watch functions that make plain numbers of sizes, or ask around; run nothing compiled."""
        watched = watched_functions(math, _UNSEEN, self._note_loss)
        names = {} if self.flags is None else readable_attributes(modules)
        read = watched_reads(names, self._note_flag)
        with _uncompiled(), watched, read, asked_around(modules, self.ask_around):
            yield

    def _note_flag(self, module: nn.Module, name: str, value: Any) -> None:
        path = self._paths.get(id(module))
        if self.flags is not None and path is not None and not self._paused:
            self.flags.note(self.stack[-1], path, name, value)

    def _note_loss(self, function: Callable[..., Any], *args: Any) -> Any:
        if any(isinstance(value, Size) for value in args):
            self.lose()
        return function(*args)

    def _finish(self) -> fx.Graph:
        self._note_chance()
        self.note_state(walk(self.root_frame))
        for path, name in self.flags.altered() if self.flags is not None else ():
            self.note_altered(path, name)
        for path, reason in self.caught.items():
            self.late.setdefault(path, reason)
        if self.unanswered is not None:
            raise UnansweredError(self.unanswered)
        if "" in self.late:
            raise RecordError(self.late[""])
        self.root_frame.output = self._output(self.root_frame, self.result)
        told = self._argument(self.result)
        held = [self._as_node(tensor) for tensor in (*self.held_in(self.result), *self.stored)]
        node = self.graph.output((told, held) if held else told)
        node.meta["stored values"] = len(self.stored)
        self._own(node)
        self.note_writes()
        recorded = list(self.graph.nodes) if self.flags is not None else []
        drop_checks(self.graph, self.root_frame)
        self._drop_unread()
        if self.flags is not None:
            own = {(self._paths[key], name) for key, name in self.was_set if key in self._paths}
            self.flags.tell(recorded, own)
        return self.graph

    def _output(self, frame: Frame, result: Any) -> Any:
        if (odd := odd_container(result)) is not None:
            self.bakes.setdefault(frame, f"it returns a {odd.__name__}")
        return map_tree(self._as_node, result)

    def _drop_unread(self) -> None:
        """Remove what only unpacks a value, or reads a stored tensor, for nobody."""
        kept = handed(self.root_frame)
        for node in reversed(list(self.graph.nodes)):
            if not node.users and node not in kept and "unpacks" in node.meta:
                cast(Frame, node.meta["frame"]).nodes.remove(node)
                self.graph.erase_node(node)

    def note_writes(self) -> None:
        """Note the stored tensors that the recorded calls change in place."""
        for writer, stored in stored_writes(self.writers):
            tensor = stored_value(stored)
            if isinstance(tensor, Tensor):
                reason = f"{writer.name} changes {stored.target} in place"
                self.changes.written.setdefault(storage_key(tensor), reason)

    def _inputs(
        self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Make placeholders for what the root is given; return what to run it on."""
        first = next((t for t in leaves((args, kwargs)) if isinstance(t, Tensor)), None)
        if first is not None:
            self.device = cast("torch.device", getattr(first, DEVICE_MARK, first.device))
            if self.elsewhere:
                self.device = torch.device("cuda" if self.device.type == "cpu" else "cpu")
        args, kwargs = map_tree(self._fresh, args), map_tree(self._fresh, kwargs)
        bound = inspect.signature(forward).bind(*args, **kwargs)
        places: list[tuple[fx.Node, Any]] = []
        for name, value in bound.arguments.items():
            kind = bound.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_KEYWORD:
                for key, item in value.items():
                    self._place(key, item, places)
                if value:
                    self.bakes[self.root_frame] = "it is called through **kwargs"
            else:
                self._place(name, value, places)
                if kind is inspect.Parameter.VAR_POSITIONAL and value:
                    self.bakes[self.root_frame] = "it is called through *args"
        for node, value in places:
            self._unpack(value, node)
        return args, kwargs

    def _place(self, name: str, value: Any, places: list[tuple[fx.Node, Any]]) -> None:
        if any(isinstance(leaf, Tensor) for leaf in leaves(value)):
            node = self._own(self.graph.placeholder(name))
            places.append((node, value))
            self.root_frame.kwargs[name] = node
            if not isinstance(value, Tensor):
                self.bakes[self.root_frame] = f"its argument {name} holds several tensors"
        else:
            self.root_frame.kwargs[name] = value

    def _fresh(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if self.real:
            return value.detach().clone()
        return self._blank(value)

    # module calls

    def _called(self, call: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        path = self._paths.get(id(module))
        self.ran.add(id(module))
        if "_orig_mod" in module._modules:  # what it compiles is the same function
            call = _call_uncompiled
        if path is None:
            return self._stray(call, module, args, kwargs)
        layer = is_layer(module)
        if self.counts_only or self._passes:
            return self._counted(call, module, path, args, kwargs)
        if layer:
            self.seen.setdefault(id(module), [])
        else:
            if not _may_call(module, args, kwargs):
                return call(module, *args, **kwargs)  # it raises a TypeError, before any code runs
            with _Quiet():
                self._note_call(module, args, kwargs)
        if self._paused:
            return call(module, *args, **kwargs)
        if layer:
            self._must_be_its_own(module, path)
            return self._leaf(call, module, path, *_in_order(module, args, kwargs))
        if self._is_opaque(module, path):
            return self._leaf(call, module, path, args, kwargs)
        if not self._is_steady(path, args, kwargs):
            return self._enter(module, path, "forward", call, (module, *args), args, kwargs)
        self._framed.add(path)
        self._passes = True
        try:  # as if it were a layer: what it calls is known
            return self._leaf(call, module, path, args, kwargs)
        finally:
            self._passes = False

    def _is_steady(self, path: str, args: Any, kwargs: Any) -> bool:
        """Say whether a part does what it did when it was recorded first."""
        form = self.steady.get(path)
        if form is None or path in self._framed:
            return False
        with _Quiet():
            return form_of(args, kwargs, self.rank_of) == form

    def _is_opaque(self, module: nn.Module, path: str) -> bool:
        """Say whether the code of a part is not followed, and note why."""
        reason = self.forced.get(path) or pinned_reason(module)
        if reason is None and path in self._framed and holds_tensors(module):
            reason = self.late[path] = "it is called more than once"
        if reason is not None:
            self.opaque.setdefault(path, reason)
        return reason is not None

    def _must_be_its_own(self, module: nn.Module, path: str) -> None:
        """Follow no frame that lends a layer other weights (`torch.func.functional_call`)."""
        for name, tensor in module._parameters.items():
            if tensor is not None and id(tensor) not in self._stored_paths:
                self._leave(self.stack[-1], f"its code calls {path} with another {name}")
                return

    def _stray(self, call: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Call a module made inside a forward: a part of its caller, if it holds no state.

        What it only groups anew (`self.features[:3]`) belongs to the model.
        """
        strangers = [part for part in module.modules() if id(part) not in self._paths]
        held = any(part._parameters or part._buffers for part in strangers)
        if held and not self._paused:
            kind = type(module).__name__
            self._leave(self.stack[-1], f"a {kind} that is not a registered submodule is called")
        return call(module, *args, **kwargs)

    def _note_call(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        calls = self.seen.setdefault(id(module), [])
        if len(calls) < 8:
            pair = map_tree(self._without_storage, (args, kwargs))
            calls.append(cast("tuple[tuple[Any, ...], dict[str, Any]]", pair))

    def _without_storage(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            is_blank = value.is_meta and type(value) is Tensor
            twin = value.detach() if is_blank else torch.empty_like(value, device="meta")
            setattr(twin, DEVICE_MARK, self.device or value.device)
            return twin
        return plain(value)

    def _leaf(
        self, call: Callable[..., Any], module: nn.Module, path: str, args: Any, kwargs: Any
    ) -> Any:
        self._note_chance()
        with _Quiet():
            recorded = self._argument(args), self._argument(kwargs)
            is_plain = len(args) == 1 and type(args[0]) is Tensor and not kwargs
            if not is_plain and any(isinstance(x, Size | Ratio) for x in leaves((args, kwargs))):
                args, kwargs = map_tree(plain, (args, kwargs))
            is_run = self.runs_all or kwargs or self._passes
            known = None if is_run else self._told(module, args)
            if known is None and self.real and path in self.opaque:
                known = self.answers.find(path, leaves((args, kwargs)))
        self._paused += 1
        self._sets.append(path)
        try:
            result = call(module, *args, **kwargs) if known is None else known
        finally:
            self._paused -= 1
            self._sets.pop()
            if self.chance is not None:
                self.chance.moved()  # that is the leaf's own affair
        with _Quiet():
            node = self._node("call_module", path, *recorded)
            node.meta["steady"] = self._passes
            self.calls[path] += 1
            changed = args[0] if self._changed_by(node) and args else None
            return self._results(result, node, again=changed)

    def _counted(
        self, call: Callable[..., Any], module: nn.Module, path: str, args: Any, kwargs: Any
    ) -> Any:
        """Call a module where layers are counted: what a layer calls belongs to it."""
        if self._paused > 1 or not is_layer(module):
            return call(module, *args, **kwargs)
        self.calls[path] += 1
        args, kwargs = _in_order(module, args, kwargs)
        with _Quiet():
            known = None if kwargs else self._told(module, args)
        self._paused += 1
        try:
            return call(module, *args, **kwargs) if known is None else known
        finally:
            self._paused -= 1

    def _told(self, module: nn.Module, args: tuple[Any, ...]) -> Tensor | None:
        """Return what a layer gives where that is plain without running it."""
        weight = module._parameters.get("weight")
        known = result_of_layer(
            module, args, torch.float64 if weight is None else self._type(weight)
        )
        if known is not None:
            self.reads.update(map(id, module._parameters.values()))
        return known

    def _enter(
        self,
        module: nn.Module,
        path: str,
        method: str,
        run: Callable[..., Any],
        given: tuple[Any, ...],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        parent = self.stack[-1]
        self._note_chance()
        with _Quiet():
            recorded = map_tree(self._handed, args), map_tree(self._handed, kwargs)
            flat = leaves((args, kwargs)) if self.real and method == "forward" else []
            before = versions(flat)
        frame = Frame(
            path, module, *recorded, parent=parent, method=method, context=current_modes()
        )
        self._hand_down((args, kwargs), parent, frame)
        for value, node in zip(leaves((args, kwargs)), leaves(recorded), strict=True):
            if isinstance(value, torch.dtype | torch.device) and isinstance(node, fx.Node):
                self._kinds.setdefault(frame, []).append(("", value, node))
        self._framed.add(path)
        self._keep_graphs(frame)
        if method == "forward":
            self._watch_methods(module, path)
        parent.children.append(frame)
        self.stack.append(frame)
        try:
            result = run(*given, **kwargs)
            self._note_chance()
            with _Quiet():
                frame.output = self._output(frame, result)
                if flat and path in self.late and before == versions(flat):
                    self.answers.keep(path, flat, result)
        except Exception as error:
            self._raised(frame, parent, error)
            raise
        finally:
            self.stack.pop()
        self._hand_down(result, frame, parent)
        return result

    def _keep_graphs(self, frame: Frame) -> None:
        """Generate no code for a GraphModule that puts another graph in place when it trains."""
        kind = type(frame.module)
        if issubclass(kind, fx.GraphModule) and kind.train is not nn.Module.train:
            self.bakes[frame] = "its train() and eval() put graphs of their own in place"

    def _note_chance(self) -> None:
        if self.chance is not None and self.chance.moved():
            self._leave(self.stack[-1], "its code draws random numbers of Python or NumPy")

    @property
    def leaves_nothing(self) -> bool:
        """Whether the run has come to its end and the next call finds what this one found."""
        return self.is_as_before and not self.keeps

    def is_own(self, error: Exception | None) -> bool:
        """Say whether the root's own code has failed with an error, not that of a part of it."""
        raised, path = self._raised_by
        return error is not None and not self.is_whole and not (raised == id(error) and path)

    def _raised(self, frame: Frame, parent: Frame, error: Exception) -> None:
        """Note a frame left by an exception: if the run goes on, its caller has caught it."""
        if self._raised_by[0] != id(error):
            self._raised_by = id(error), frame.path
        self.caught.setdefault(parent.path, "its code catches an error of a part of it")

    def _hand_down(self, tree: Any, above: Frame, below: Frame) -> None:
        for leaf in leaves(tree):
            if isinstance(leaf, Size | Ratio):
                known = self._numbers.get((id(leaf), id(above)))
                if known is not None:
                    self._numbers[id(leaf), id(below)] = known

    # methods

    def _watch_methods(self, module: nn.Module, path: str) -> None:
        """Record calls of the module's own methods as frames too (`self.forward_features(x)`)."""
        if isinstance(module, _NormBase) and disguise(module) is not None:
            self._put(module, "_check_input_dim", _accept_any_rank)
        kind = type(module)
        if kind not in self._methods:
            self._methods[kind] = [*helper_methods(module)]
        for name, function in self._methods[kind]:
            self._put(module, name, self._watched(module, path, name, function))

    def _put(self, module: nn.Module, name: str, function: Callable[..., Any]) -> None:
        """Let an instance have a function of ours until the run is over, if it has none itself."""
        if name not in module.__dict__:
            module.__dict__[name] = function
            self.was_set.add((id(module), name))
            self._ours.append((module.__dict__, name, function))

    def _take_back(self) -> None:
        for attributes, name, function in self._ours:
            if attributes.get(name) is function:
                del attributes[name]

    def _watched(
        self, module: nn.Module, path: str, name: str, function: Callable[..., Any]
    ) -> Callable[..., Any]:
        bound = MethodType(function, module)

        def call(*args: Any, **kwargs: Any) -> Any:
            traced = any(self._mark(leaf) is not None for leaf in leaves((args, kwargs)))
            if self._paused or not traced or self.stack[-1].module is not module:
                return bound(*args, **kwargs)
            return self._enter(module, path, name, bound, args, args, kwargs)

        return call


_UNSEEN = ("log", "log2", "log10", "isqrt", "gcd", "lcm")  # they ask no whole number anything

_Quiet = torch._C.DisableTorchFunction  # our own questions are none of the model's


def _call_uncompiled(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return cast(nn.Module, module._modules["_orig_mod"])(*args, **kwargs)


def _uncompiled() -> AbstractContextManager[Any]:
    """Run compiled functions of the model's code (`torch.compile(self.step)`) as they are written.

    Where nothing has loaded the compiler, which takes seconds, there are none.
    """
    is_loaded = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if is_loaded else _nothing()


@contextmanager
def _nothing() -> Generator[None]:
    yield


def _may_call(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> bool:
    """Say whether a module's forward takes such arguments at all, hooks that change them aside."""
    if not kwargs or module._forward_pre_hooks:
        return True
    try:
        inspect.signature(module.forward).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:  # a built-in function without a signature
        return True
    return True


def _in_order(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Give a layer its one tensor by place where code gives it by name (`conv(input=x)`)."""
    if args or list(kwargs) != ["input"]:
        return args, kwargs
    first = next(iter(inspect.signature(module.forward).parameters), None)
    return ((kwargs["input"],), {}) if first == "input" else (args, kwargs)


def holds_tensors(module: nn.Module) -> bool:
    """Say whether a module has parameters or buffers: two calls of it then share them."""
    tables = ((part._parameters, part._buffers) for part in module.modules())
    return any(value is not None for pair in tables for table in pair for value in table.values())


def _accept_any_rank(value: Any) -> None:
    """Stand for a norm's check of its input's rank."""
