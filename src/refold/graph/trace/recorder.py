"""Record one run of a module: what it calls becomes a flat graph with frames.

The model's own code runs, on tensors without storage: to its code tensors are tensors, so that
whatever Python it asks (types, containers, exceptions, helpers) is answered as in any run.
"""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode

from refold.graph.copies.skeleton import storage_key
from refold.graph.trace.effects import mutated
from refold.graph.trace.frames import Frame, leaves, map_tree, nodes_in, tree_items
from refold.graph.trace.genuine import disguise, layer_class
from refold.graph.trace.leaves import (
    current_modes,
    drop_checks,
    helper_methods,
    is_layer,
    pinned_reason,
    stored_path,
)
from refold.graph.trace.sizes import Ratio, Size, number, plain
from refold.graph.trace.spelling import CHECKS, QUESTIONS, RANDOM, SIZES, VALUES, spell
from refold.graph.trace.state import Changes, same_value, untouched, watched_attributes
from refold.graph.trace.writes import is_stored_value, stored_value, stored_writes

_MARK = "_refold_mark"
_TORCH = ("torch.", "torch", "refold.")


class RecordError(Exception):
    """A recording cannot go on; the text says why, for a refusal."""


class Unanswered(RecordError):
    """Code asks for numbers that the inputs decide."""


class Recorder(TorchFunctionMode):
    """Runs one module and notes what its code calls.

    Args:
        root: the module, part of a throw-away skeleton.
        leaves: paths to take as atomic, with the reason.
        changes: what code of the model changes; one record for all recordings of a model.
        real: compute with numbers, so that code which asks for them can go on; it is left opaque.
        elsewhere: as if the model were in half precision and on another device.
        flip: the decision about a size to answer the other way round, by its number.

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
        flip: int | None = None,
        elsewhere: bool = False,
    ) -> None:
        super().__init__()
        self.root, self.forced, self.changes = root, leaves, changes
        self.real, self.flip, self.elsewhere = real, flip, elsewhere
        self.graph = fx.Graph()
        self.opaque: dict[str, str] = {}
        self.late: dict[str, str] = {}
        self.caught: dict[str, str] = {}
        self.calls: Counter[str] = Counter()
        self.seen: dict[int, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}
        self.root_frame = Frame("", root, context=(True, *current_modes()[1:]))
        self.stack = [self.root_frame]
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.decisions: list[tuple[Frame, str]] = []
        self.bakes: dict[Frame, str] = {}  # frames whose forward cannot be written down, and why
        self.constants: dict[str, Tensor] = {}
        self.was_set: set[tuple[int, str]] = set()
        self.set_here: list[tuple[str, Frame]] = []
        self.asks_rank = self.loses_size = False
        self.unanswered: str | None = None
        self.device: torch.device | None = None
        self.result: Any = None
        self._paused = 0
        self._framed: set[str] = set()
        self._sets: list[str] = []
        self._stored: dict[tuple[int, int], fx.Node] = {}
        self._twins: dict[int, tuple[Tensor, Tensor]] = {}
        self._kinds: dict[Frame, list[tuple[str, Any, fx.Node]]] = {}  # dtypes and devices read
        self._made: set[int] = set()  # storages that this run has made without inputs
        self._alive: list[Tensor] = []
        self._static: set[fx.Node] = set()  # made from stored tensors alone
        self._numbers: dict[tuple[int, int], tuple[Any, fx.Node]] = {}
        self._paths: dict[int, str] = {}
        self._stored_paths: dict[int, str] = {}

    # the run

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Graph:
        """Run the root with these arguments and return its graph.

        Raises:
            RecordError: when the root itself is found out to be no frame.
        """
        root = self.root
        self._paths = {id(module): path for path, module in root.named_modules()}
        for table in (root.named_buffers(), root.named_parameters()):
            self._stored_paths.update((id(tensor), name) for name, tensor in table)
        own = root.__dict__.get("forward")
        forward = MethodType(type(root).forward, root) if own is None else own
        args, kwargs = self._inputs(forward, args, kwargs)
        self._watch_methods(root, "")
        watched = watched_attributes(self._note_assignment)
        guard = untouched(root) if self.real else _nothing()
        grad = torch.is_grad_enabled()
        torch.set_grad_enabled(True)  # so that a `with torch.no_grad()` in the model shows
        try:
            with guard, watched, _watched_calls(self._called), self:
                self.result = forward(*args, **kwargs)
        finally:
            torch.set_grad_enabled(grad)
        return self._finish()

    def _finish(self) -> fx.Graph:
        self._must_keep_state(self.root_frame, 0)
        for path, reason in self.caught.items():
            self.late.setdefault(path, reason)
        if self.unanswered is not None:
            raise Unanswered(self.unanswered)
        if "" in self.late:
            raise RecordError(self.late[""])
        output = map_tree(self._as_node, self.result)
        self.root_frame.output = output
        node = self.graph.output(self._argument(self.result))
        self._own(node)
        self.note_writes()
        drop_checks(self.graph, self.root_frame)
        self._drop_unread()
        return self.graph

    def _drop_unread(self) -> None:
        """Remove what only unpacks a value, or reads a stored tensor, for nobody."""
        kept = set[fx.Node]()
        for frame in _frames(self.root_frame):
            kept.update(nodes_in((frame.args, frame.kwargs, frame.output)))
        for node in reversed(list(self.graph.nodes)):
            if not node.users and node not in kept and "unpacks" in node.meta:
                cast(Frame, node.meta["frame"]).nodes.remove(node)
                self.graph.erase_node(node)

    def note_writes(self) -> None:
        """Note the stored tensors that the recorded calls change in place."""
        for writer, stored in stored_writes(self.graph.nodes):
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
            self.device = cast("torch.device", getattr(first, "_refold_device", first.device))
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

    def _blank(self, value: Tensor) -> Tensor:
        """Return a tensor without storage in place of a real one."""
        dtype = value.dtype
        if self.elsewhere and dtype.is_floating_point:
            dtype = torch.float32 if dtype == torch.float16 else torch.float16
        made = torch.empty_like(value, dtype=dtype, device="meta", requires_grad=False)
        return made.as_subclass(Tensor)

    # module calls

    def _called(self, call: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        path = self._paths.get(id(module))
        if "_orig_mod" in module._modules:  # what it compiles is the same function
            plain_one, call = module, lambda _, *a, **k: plain_one._modules["_orig_mod"](*a, **k)
        if path is None:
            return self._stray(call, module, args, kwargs)
        with _Quiet():
            self._note_call(module, args, kwargs)
        if self._paused:
            return call(module, *args, **kwargs)
        if is_layer(module):
            return self._leaf(call, module, path, args, kwargs)
        reason = self.forced.get(path) or pinned_reason(module)
        if reason is None and path in self._framed:
            reason = self.late[path] = "it is called more than once"
        if reason is not None:
            self.opaque.setdefault(path, reason)
            return self._leaf(call, module, path, args, kwargs)
        return self._enter(module, path, "forward", call, (module, *args), args, kwargs)

    def _stray(self, call: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Call a module made inside a forward: a part of its caller, if it holds no state."""
        held = any(True for _ in module.parameters()) or any(True for _ in module.buffers())
        if held and not self._paused:
            kind = type(module).__name__
            self._leave(self.stack[-1], f"a {kind} that is no registered submodule is called")
        return call(module, *args, **kwargs)

    def _note_call(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        calls = self.seen.setdefault(id(module), [])
        if len(calls) < 8 and not is_layer(module):
            pair = map_tree(self._without_storage, (args, kwargs))
            calls.append(cast("tuple[tuple[Any, ...], dict[str, Any]]", pair))

    def _without_storage(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            twin = torch.empty_like(value, device="meta", requires_grad=False)
            twin.__dict__["_refold_device"] = self.device or value.device
            return twin
        return plain(value)

    def _leaf(
        self, call: Callable[..., Any], module: nn.Module, path: str, args: Any, kwargs: Any
    ) -> Any:
        with _Quiet():
            recorded = self._argument(args), self._argument(kwargs)
            if any(isinstance(leaf, Size | Ratio) for leaf in leaves((args, kwargs))):
                args, kwargs = map_tree(plain, (args, kwargs))
        self._paused += 1
        self._sets.append(path)
        try:
            keeps = not self.real and not kwargs and len(args) == 1 and _keeps_shape(module)
            result = args[0].detach() if keeps else call(module, *args, **kwargs)
        finally:
            self._paused -= 1
            self._sets.pop()
        with _Quiet():
            node = self._node("call_module", path, *recorded)
            self.calls[path] += 1
            changed = args[0] if args and mutated(node) else None
            return self._results(result, node, again=changed)

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
        with _Quiet():
            recorded = map_tree(self._handed, args), map_tree(self._handed, kwargs)
        frame = Frame(
            path, module, *recorded, parent=parent, method=method, context=current_modes()
        )
        self._hand_down((args, kwargs), parent, frame)
        for value, node in zip(leaves((args, kwargs)), leaves(recorded), strict=True):
            if isinstance(value, torch.dtype | torch.device) and isinstance(node, fx.Node):
                self._kinds.setdefault(frame, []).append(("", value, node))
        self._framed.add(path)
        if method == "forward":
            self._watch_methods(module, path)
        parent.children.append(frame)
        self.stack.append(frame)
        mark = len(self.set_here)
        try:
            result = run(*given, **kwargs)
            with _Quiet():
                frame.output = map_tree(self._as_node, result)
        except Exception:
            self._raised(frame, parent)
            raise
        finally:
            self.stack.pop()
        self._hand_down(result, frame, parent)
        self._must_keep_state(frame, mark)
        return result

    def _raised(self, frame: Frame, parent: Frame) -> None:
        """Note a frame left by an exception: if the run goes on, its caller has caught it."""
        self.caught.setdefault(parent.path, "its code catches an error of a part of it")

    def _hand_down(self, tree: Any, above: Frame, below: Frame) -> None:
        for leaf in leaves(tree):
            if isinstance(leaf, Size | Ratio):
                known = self._numbers.get((id(leaf), id(above)))
                if known is not None:
                    self._numbers[id(leaf), id(below)] = known

    def _must_keep_state(self, frame: Frame, mark: int) -> None:
        if len(self.set_here) > mark:
            reason = self.set_here[mark][0]
            self._leave(frame, reason)

    def _leave(self, frame: Frame, reason: str) -> None:
        """Note that a frame is none: its code must stay as it is."""
        self.late.setdefault(frame.path, reason)

    # methods

    def _watch_methods(self, module: nn.Module, path: str) -> None:
        """Record calls of the module's own methods as frames too (`self.forward_features(x)`)."""
        if isinstance(module, _NormBase) and disguise(module) is not None:
            module.__dict__.setdefault("_check_input_dim", _accept_any_rank)
            self.was_set.add((id(module), "_check_input_dim"))
        for name, function in helper_methods(module):
            if name not in module.__dict__:
                module.__dict__[name] = self._watched(module, path, name, function)
                self.was_set.add((id(module), name))

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

    def _note_assignment(self, module: nn.Module, name: str, value: Any) -> bool:
        """Note an assignment to an attribute; True where it assigns what is there already."""
        if id(module) not in self._paths:
            return False
        frame = self.stack[-1]
        old = {**module.__dict__, **module._parameters, **module._buffers}.get(name)
        is_stored = isinstance(old, Tensor)
        marked = self._mark(value)
        if is_stored and marked is not None and is_stored_value(marked, old):
            return True  # `self.n += 1` has changed the tensor itself
        if same_value(old, value) and (name in module.__dict__ or is_stored):
            return False
        path = self._paths[id(module)]
        whole = f"{path}.{name}" if path else name
        self.was_set.add((id(module), name))
        reason = f"its code sets {whole}, which stays for the next call"
        if self._paused:
            below = self._sets[-1] if self._sets else frame.path
            if path and not f"{path}.".startswith(f"{below}."):
                self.changes.assigned.setdefault(id(module), f"the code of {below} sets its {name}")
            return False
        self.set_here.append((reason, frame))
        if module is not frame.module:
            where = f"the code of {frame.path}" if frame.path else "code outside it"
            self.changes.assigned.setdefault(id(module), f"{where} sets its {name}")
        return False

    # calls of torch

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = cast(str, getattr(func, "__name__", ""))
        if self._paused:
            return self._run_paused(func, name, args, kwargs)
        if name == "__get__" and args and isinstance(args[0], Tensor):
            return self._read(func, func.__self__.__name__, args[0])
        if name == "__set__":
            return self._assign(func, func.__self__.__name__, args)
        if name in CHECKS:
            return None
        if name in SIZES:
            return self._size(func, name, args, kwargs)
        if name in QUESTIONS:
            return func(*self._converted(args), **self._converted(kwargs))
        if name in VALUES or (name == "where" and len(args) == 1):
            return self._value(func, name, args, kwargs)
        return self._call(func, name, args, kwargs)

    def _run_paused(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        if name == "__get__" and args and isinstance(args[0], Tensor):
            read = func.__self__.__name__
            if read in _DEVICE:
                return self._device_answer(func, read, args[0])
            return func(*args)
        if name == "__set__":
            return self._assign(func, func.__self__.__name__, args)
        if name in VALUES and not self.real and self._is_unknown((args, kwargs)):
            self.unanswered = self.unanswered or f"its code asks for numbers ({name})"
            raise Unanswered(self.unanswered)
        given = any(isinstance(leaf, Tensor) for leaf in leaves((args, kwargs)))
        if not self.real and (name in VALUES or not given):
            return func(*args, **kwargs)  # a cache may keep what is made here
        result = func(*self._converted(args), **self._converted(kwargs))
        for leaf in leaves(result):
            if isinstance(leaf, Tensor) and self.real and _MARK not in leaf.__dict__:
                leaf.__dict__[_MARK] = (self, None)
        return result

    def _is_unknown(self, tree: Any) -> bool:
        return any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in leaves(tree))

    def _call(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        flat = leaves((args, kwargs))
        tensors = [leaf for leaf in flat if isinstance(leaf, Tensor)]
        sized = any(isinstance(leaf, Size | Ratio) for leaf in flat)
        followed = any(self._is_followed(tensor) for tensor in tensors)
        if not followed and not sized and name not in RANDOM:
            return self._constant(func, name, args, kwargs)
        recorded = self._argument(args), self._argument(kwargs)
        if name in ("cpu", "cuda") and not self.real:
            result = args[0]
        else:
            result = func(*self._converted(args), **self._converted(kwargs))
        if not any(isinstance(leaf, Tensor) for leaf in leaves(result)) and result is not None:
            return result
        if result is None and not tensors:
            return None
        op, target, spelled = spell(func, name, recorded[0], recorded[1])
        node = self._node(op, target, spelled, recorded[1])
        if result is None:
            return None
        changes = mutated(node)
        return self._results(result, node, again=args[0] if changes and args else None)

    def _constant(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Compute what no input and no stored tensor takes part in."""
        given = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        keys = {storage_key(tensor) for tensor in given}
        if given and _writes(name, kwargs) and not keys <= self._made:
            changed = cast(Tensor, kwargs.get("out", given[0]))
            reason = "its code changes a tensor in place that stays for the next call"
            self._leave(self.stack[-1], reason)
            self.changes.written.setdefault(storage_key(changed), reason)
            args, kwargs = map_tree(_cloned, (args, kwargs))
        result = func(*map_tree(plain, args), **map_tree(plain, kwargs))
        for leaf in leaves(result):
            if isinstance(leaf, Tensor) and storage_key(leaf) not in keys:
                self._made.add(storage_key(leaf))
                self._alive.append(leaf)
        return result

    def _read(self, func: Any, name: str, tensor: Tensor) -> Any:
        node = self._mark(tensor)
        if name == "shape" and node is not None:
            return self._shape(tensor, node)
        if name in _DEVICE:
            answer = self._device_answer(func, name, tensor)
            if name == "device" and node is not None:
                self._kinds.setdefault(self.stack[-1], []).append(("device", answer, node))
            return answer
        value = func(tensor)
        self.asks_rank |= name == "ndim" and node is not None
        if name == "dtype" and node is not None:
            self._kinds.setdefault(self.stack[-1], []).append(("dtype", value, node))
        if isinstance(value, Tensor) and self._is_followed(tensor):
            return self._results(value, self._node("call_function", getattr, (self._as_node(tensor), name), {}))
        return value

    def _device_answer(self, func: Any, name: str, tensor: Tensor) -> Any:
        """Tell the device of the model, not that of tensors without storage."""
        if not tensor.is_meta or self.device is None:
            return func(tensor)
        if name == "device":
            return self.device
        return self.device.type == name.removeprefix("is_")

    def _shape(self, tensor: Tensor, node: fx.Node) -> torch.Size:
        if node in self._static:
            return tensor.shape
        found = enumerate(tensor.shape)
        return torch.Size([Size(n, (Tensor.size, node, i), self) for i, n in found])

    def _size(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        value = func(*map_tree(plain, args), **kwargs)
        node = self._mark(args[0])
        if node is None or node in self._static:
            return value
        if name in ("dim", "ndimension"):
            self.asks_rank = True
            return value
        if isinstance(value, torch.Size):
            return self._shape(args[0], node)
        if name == "size":
            return Size(value, (Tensor.size, node, *args[1:], *kwargs.values()), self)
        if name == "__len__":
            self.loses_size = True
            return value
        return Size(value, (Tensor.numel, node), self)

    def _assign(self, func: Any, name: str, args: Any) -> Any:
        tensor = args[0]
        if not isinstance(tensor, Tensor) or name in ("requires_grad", "grad"):
            return None
        key = id(tensor)
        where = self._stored_paths.get(key, "a tensor")
        frame = self.stack[-1]
        self._leave(frame, f"its code assigns to the {name} of {where}")
        if key in self._stored_paths or self._mark(tensor) is None:
            self.changes.written.setdefault(
                storage_key(tensor), f"its code changes {where} by assignment"
            )
            twin = self._converted(args[1])
            self._twins[key] = (tensor, twin)
            return None
        return func(tensor, self._converted(args[1]))

    # numbers

    def _value(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Answer code that asks for numbers: from stored tensors, in a real run, or not at all."""
        tensors = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        marks = [self._mark(tensor) for tensor in tensors]
        if all(mark is None for mark in marks):
            if all(not tensor.is_meta for tensor in tensors):
                for tensor in tensors:
                    if id(tensor) in self._stored_paths:
                        self._note_read(tensor)
                return func(*map_tree(plain, args), **kwargs)
        else:
            known = map_tree(self._known_value, (args, kwargs))
            if not any(leaf is _UNKNOWN for leaf in leaves(known)):
                return func(*known[0], **known[1])
        frame = self.stack[-1]
        reason = f"its code asks for numbers that depend on the input ({_where()})"
        if not self.real:
            self.unanswered = self.unanswered or reason
            raise Unanswered(reason)
        self._leave(frame, reason)
        result = func(*self._converted(args), **self._converted(kwargs))
        for leaf in leaves(result):
            if isinstance(leaf, Tensor):
                leaf.__dict__[_MARK] = (self, None)
        return result

    def _note_read(self, tensor: Tensor) -> None:
        key = storage_key(tensor)
        if key in self.changes.written:
            path = self._stored_paths[id(tensor)]
            self._leave(self.stack[-1], f"its code reads {path}, which changes")
        self.changes.read.setdefault(key, self._stored_paths.get(id(tensor), "a buffer"))

    def _known_value(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return plain(value)
        node = self._mark(value)
        if node is None:
            return value if not value.is_meta else _UNKNOWN
        return self._evaluate(node)

    def _evaluate(self, node: fx.Node) -> Any:
        """Return the value of a node that only stored tensors make."""
        if node.op == "get_attr":
            tensor = stored_value(node)
            if isinstance(tensor, Tensor):
                self._note_read(tensor)
            return tensor
        if node.op not in ("call_function", "call_method") or not node.all_input_nodes:
            return _UNKNOWN
        if mutated(node) or str(node.target) in RANDOM:
            return _UNKNOWN
        args, kwargs = map_tree(self._evaluated, (node.args, dict(node.kwargs)))
        if any(leaf is _UNKNOWN for leaf in leaves((args, kwargs))):
            return _UNKNOWN
        with torch.no_grad():
            if node.op == "call_method":
                return getattr(args[0], cast(str, node.target))(*args[1:], **kwargs)
            return cast(Any, node.target)(*args, **kwargs)

    def _evaluated(self, leaf: Any) -> Any:
        return self._evaluate(leaf) if isinstance(leaf, fx.Node) else leaf

    # sizes

    def decide(self, answer: bool) -> bool:
        """Note that code compared a size; the flipped decision is answered the other way."""
        if self._paused or not self._is_running():
            return answer
        self.decisions.append((self.stack[-1], _where()))
        return not answer if self.flip == len(self.decisions) - 1 else answer

    def lose(self) -> None:
        """Note that a size became a plain number, of which nothing more is known."""
        self.loses_size |= not self._paused

    def is_cached(self) -> bool:
        """Say whether the code that hashes a size calls a function with a cache."""
        frame = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
        names, scope = frame.f_code.co_names, frame.f_globals
        near = [*(scope.get(name) for name in names), *frame.f_locals.values()]
        return any(hasattr(value, "cache_info") for value in near if callable(value)) or any(
            hasattr(getattr(type(value), name, None), "cache_info")
            for value in frame.f_locals.values()
            for name in names
        )

    def _is_running(self) -> bool:
        return self.result is None

    # tensors and nodes

    def _mark(self, value: Any) -> fx.Node | None:
        if not isinstance(value, Tensor):
            return None
        mark = value.__dict__.get(_MARK)
        return mark[1] if mark is not None and mark[0] is self else None

    def _is_followed(self, tensor: Tensor) -> bool:
        """Say whether inputs or stored tensors take part in a value."""
        mark = tensor.__dict__.get(_MARK)
        if mark is not None and mark[0] is self:
            return True
        return id(tensor) in self._stored_paths or tensor.is_meta

    def _as_node(self, value: Any) -> Any:
        """Return what stands for a value in the graph; what it does not know it stores."""
        if isinstance(value, Tensor):
            node = self._mark(value)
            return self._stored_node(value) if node is None else node
        if isinstance(value, Size | Ratio):
            return self._number_node(value)
        return value

    def _stored_node(self, tensor: Tensor) -> fx.Node:
        frame = self.stack[-1]
        key = (id(frame), id(tensor))
        known = self._stored.get(key)
        if known is not None:
            return known
        path = self._stored_paths.get(id(tensor))
        mark = tensor.__dict__.get(_MARK)
        if (mark is not None and mark[0] is self) or (path is None and tensor.is_meta):
            self._leave(frame, "its code reads a value that unseen code keeps")
        if path is None:
            path = f"_tensor_constant{len(self.constants)}"
            while hasattr(self.root, path) or path in self.constants:
                path += "_"
            self.constants[path] = tensor
            target = path
        else:
            target = stored_path(frame, path, tensor)
        node = self._node("get_attr", target, (), {})
        node.meta["stored"] = tensor
        node.meta["unpacks"] = True
        self._stored[key] = node
        self.shapes[node] = tuple(tensor.shape)
        return node

    def _number_node(self, value: Size | Ratio) -> Any:
        if value.listener is not self:
            return plain(value)
        frame = self.stack[-1]
        known = self._numbers.get((id(value), id(frame)))
        if known is not None:
            return known[1]
        function, *rest = value.source
        args = tuple(self._as_node(item) for item in rest)
        if function in (Tensor.size, Tensor.numel):
            node = self._node("call_method", function.__name__, args, {})
        else:
            node = self._node("call_function", function, args, {})
        node.meta["unpacks"] = True
        self._numbers[id(value), id(frame)] = (value, node)
        return node

    def _argument(self, tree: Any) -> Any:
        """Return arguments as a graph holds them."""
        if isinstance(tree, tuple):
            items = [self._argument(item) for item in cast("tuple[Any, ...]", tree)]
            return cast(Any, type(tree))(*items) if hasattr(tree, "_fields") else tuple(items)
        if isinstance(tree, list):
            return [self._argument(item) for item in cast("list[Any]", tree)]
        if isinstance(tree, dict):
            table = cast("dict[Any, Any]", tree)
            named = {key: self._argument(item) for key, item in table.items()}
            if type(tree) is dict:
                return named
            return self._node("call_function", type(tree), (list(named.items()),), {})
        if isinstance(tree, slice):
            return slice(*(self._argument(p) for p in (tree.start, tree.stop, tree.step)))
        if isinstance(tree, range):
            return tree
        if isinstance(tree, torch.dtype | torch.device):
            return self._kind(tree)
        value = self._as_node(tree)
        if not isinstance(value, _PLAIN):
            made = list(tree_items(value))
            if made:
                named = {key: self._argument(item) for _, key, item in made}
                return self._node("call_function", type(value), (), named)
            self.bakes.setdefault(self.stack[-1], f"it hands on a {type(value).__name__}")
        return value

    def _kind(self, value: torch.dtype | torch.device) -> Any:
        """Return a dtype or device, read off the tensor that the code has read it off."""
        for name, known, node in reversed(self._kinds.get(self.stack[-1], [])):
            if known == value:
                return self._node("call_function", getattr, (node, name), {}) if name else node
        return value

    def _handed(self, value: Any) -> Any:
        """Return what stands for an argument or a result of a frame."""
        if isinstance(value, torch.dtype | torch.device):
            return self._kind(value)
        return self._as_node(value)

    def _converted(self, tree: Any) -> Any:
        """Return arguments to compute with: tensors without storage, plain numbers."""
        return map_tree(self._twin, tree)

    def _twin(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if self.real:
                return self._real_twin(value)
            if value.is_meta:
                return value
            known = self._twins.get(id(value))
            if known is None:
                known = self._twins[id(value)] = (value, self._blank(value))
            return known[1]
        if not self.real and (
            isinstance(value, torch.device)
            or (isinstance(value, str) and value.split(":")[0] in _DEVICES)
        ):
            return torch.device("meta")
        return plain(value)

    def _real_twin(self, value: Tensor) -> Tensor:
        if id(value) not in self._stored_paths:
            return value
        known = self._twins.get(id(value))
        if known is None:
            twin = value.detach() if isinstance(value, nn.Parameter) else value.detach().clone()
            known = self._twins[id(value)] = (value, twin)
        return known[1]

    def _results(self, result: Any, node: fx.Node, again: Any = None) -> Any:
        """Let the tensors of a result stand for a node; a value under a new name is a new object."""
        if isinstance(result, Tensor):
            if again is not None and isinstance(again, Tensor):
                twin = self._twins.get(id(again))
                if twin is not None and twin[1] is result:
                    self._stored[id(self.stack[-1]), id(again)] = node
                    result = result.detach()
                elif result is again:
                    pass
                else:
                    result = result.detach()
            elif _MARK in result.__dict__ or self._is_twin(result):
                result = result.detach()
            result.__dict__[_MARK] = (self, node)
            self.shapes[node] = tuple(result.shape)
            return result
        if isinstance(result, torch.Size):
            return result
        if isinstance(result, tuple | list | dict) or tuple(tree_items(result)):
            self._unpack(result, node)
        return result

    def _is_twin(self, tensor: Tensor) -> bool:
        return any(tensor is twin for _, twin in self._twins.values()) or id(tensor) in self._stored_paths

    def _unpack(self, tree: Any, node: fx.Node) -> None:
        """Let the tensors of a nest stand for items of a node."""
        if isinstance(tree, Tensor):
            tree.__dict__[_MARK] = (self, node)
            self.shapes[node] = tuple(tree.shape)
            return
        for access, key, item in tree_items(tree):
            if any(isinstance(leaf, Tensor) for leaf in leaves(item)):
                made = self._node("call_function", access, (node, key), {})
                made.meta["unpacks"] = True
                self._unpack(item, made)

    def _node(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        return self._own(self.graph.create_node(op, target, args, kwargs))

    def _own(self, node: fx.Node) -> fx.Node:
        frame = self.stack[-1]
        node.meta["frame"] = frame
        if current_modes() != frame.context and node.op not in ("placeholder", "output"):
            node.meta["context"] = True
        frame.nodes.append(node)
        inputs = node.all_input_nodes
        if node.op == "get_attr" or (inputs and self._static.issuperset(inputs)):
            self._static.add(node)
        return node


_Quiet = torch._C.DisableTorchFunction  # our own questions are none of the model's
_UNKNOWN = object()
_DEVICE = frozenset({"device", "is_cuda", "is_cpu", "is_mps", "is_xpu", "is_meta"})
_DEVICES = frozenset({"cpu", "cuda", "mps", "xpu"})
_PLAIN = (
    fx.Node,
    int,
    float,
    complex,
    str,
    bytes,
    type(None),
    type(...),
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
    torch.Size,
    type,
)


def _frames(frame: Frame) -> Iterator[Frame]:
    yield frame
    for child in frame.children:
        yield from _frames(child)


def _where() -> str:
    """Return the line of the model's code that runs, as `file.py:12`."""
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame.f_back is not None:
        home = str(frame.f_globals.get("__name__", ""))
        if not home.startswith(_TORCH) or home.startswith("torchvision"):
            break
        frame = frame.f_back
    return f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}"


def _keeps_shape(module: nn.Module) -> bool:
    """Say whether a layer is a norm by stored statistics: slow without storage, and no news."""
    kind = layer_class(module)
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    return kind in norms and not module.training and getattr(module, "running_mean") is not None


def _writes(name: str, kwargs: dict[str, Any]) -> bool:
    inplace = name.endswith("_") and not name.endswith("__")
    return inplace or name == "__setitem__" or name.startswith("__i") or "out" in kwargs


def _cloned(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


@contextmanager
def _nothing() -> Generator[None]:
    yield


@contextmanager
def _watched_calls(watch: Callable[..., Any]) -> Generator[None]:
    """Tell `watch` of every call of a module."""
    call = nn.Module.__call__

    def watched(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return watch(call, self, args, kwargs)

    nn.Module.__call__ = watched
    try:
        yield
    finally:
        nn.Module.__call__ = call


def _accept_any_rank(value: Any) -> None:
    """Stand for a norm's check of its input's rank."""
