"""Trace a module into one flat graph and remember which module call made every node."""

from __future__ import annotations

import inspect
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import MethodType
from typing import Any, cast

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase

from refold.errors import InputError
from refold.graph.copies.skeleton import storage_key
from refold.graph.trace.frames import Frame, leaves, map_tree
from refold.graph.trace.genuine import disguise
from refold.graph.trace.leaves import (
    current_modes,
    drop_checks,
    helper_methods,
    is_layer,
    one_line,
    pinned_reason,
    stored_path,
)
from refold.graph.trace.proxies.isinstance import tensors_are_tensors
from refold.graph.trace.proxies.proxy import RefoldProxy
from refold.graph.trace.state import (
    Changes,
    StateChangeError,
    same_value,
    untouched,
)
from refold.graph.trace.watching import watched_attributes
from refold.graph.trace.writes import is_stored_value, stored_value, stored_writes


class RefoldTracer(fx.Tracer):
    """A tracer that keeps frames, keeps in-place operators and survives what it cannot trace.

    Args:
        leaves: paths to take as atomic, with the reason.
        buffers: record reads of buffers as nodes (else they are constants of the trace).
        changes: what code of the model changes; one record for all traces of a model.

    A submodule that cannot be traced becomes a leaf on the spot; `opaque` holds its path and the
    reason. A module with hooks, parametrizations or a compiled body is a leaf too. `repeated` holds
    the modules called more than once that were not yet leaves: trace again with them in `leaves`.
    """

    def __init__(
        self,
        leaves: dict[str, str] | None = None,
        *,
        buffers: bool = True,
        changes: Changes | None = None,
    ) -> None:
        super().__init__()
        self.forced = dict(leaves or {})
        self.changes = Changes() if changes is None else changes
        self.reset(buffers=buffers)

    def reset(self, *, buffers: bool) -> None:
        """Forget what a failed trace has recorded."""
        self.proxy_buffer_attributes = buffers
        self.num_calls: dict[str, int] = {}
        self.opaque: dict[str, str] = {}
        self.entered: set[str] = set()
        self.repeated: dict[str, str] = {}
        self.calls: Counter[str] = Counter()
        self.stack: list[Frame] = []
        self.root_frame: Frame | None = None
        self.set_here: list[str] = []  # what the frames that run have set, as reasons
        self.was_set: set[tuple[int, str]] = set()
        self.read: dict[int, str] = {}  # stored numbers that control flow has read
        self._framed: set[str] = set()
        self._log: list[fx.Node] = []
        self._stored: dict[tuple[int, int], RefoldProxy] = {}
        self._stored_paths: dict[int, str] = {}

    # what is a leaf

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Say whether a module is one node: a torch.nn layer, or not to be looked into."""
        return is_layer(m) or self._opaque_reason(m, module_qualified_name) is not None

    def _opaque_reason(self, module: nn.Module, path: str) -> str | None:
        if path in self.forced:
            return self.forced[path]
        return pinned_reason(module)

    # module calls

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Record a call: one node for a leaf, else a frame around the nodes of its forward."""
        path = self._path(m)
        self.entered.add(path or "")
        if path is None:  # made inside forward: holds no state, so it is part of its caller
            return forward(*args, **kwargs)
        if is_layer(m):
            return self._leaf(path, args, kwargs)
        reason = self._opaque_reason(m, path)
        if reason is None and path in self._framed:
            reason = self.repeated[path] = "it is called more than once"
        if reason is not None:
            self.opaque.setdefault(path, reason)
            return self._leaf(path, args, kwargs)
        return self._enter(m, path, forward, args, kwargs)

    def _path(self, module: nn.Module) -> str | None:
        try:
            return self.path_of_module(module)
        except NameError:
            if any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
                kind = type(module).__name__
                raise InputError(f"a {kind} that is no registered submodule is called") from None
            return None

    def _leaf(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Proxy:
        proxy = self.create_proxy("call_module", path, args, kwargs)
        self.calls[path] += 1
        return proxy

    def _enter(
        self,
        module: nn.Module,
        path: str,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        mark, calls, framed = len(self._log), self.calls.copy(), set(self._framed)
        noted = len(self.set_here)
        lists = [(item, list(item)) for item in args if isinstance(item, list)]
        buffers = self.proxy_buffer_attributes
        for attempt in (buffers, False):
            self.proxy_buffer_attributes = attempt
            try:
                return self._run(module, path, "forward", forward, args, kwargs)
            except Exception as error:  # any model code may raise anything while it is traced
                reason = str(error) if isinstance(error, StateChangeError) else one_line(error)
                self.note_writes(mark)
                self._roll_back(mark)
                self.calls, self._framed = calls.copy(), set(framed)
                for item, content in lists:
                    item[:] = content
            finally:
                self.proxy_buffer_attributes = buffers
            has_changed = len(self.set_here) > noted
            del self.set_here[noted:]
            if has_changed or not buffers or not any(True for _ in module.buffers()):
                break  # a second try would start from what the first has changed
        self.opaque[path] = reason
        return self._leaf(path, args, kwargs)

    def _run(
        self,
        module: nn.Module,
        path: str,
        method: str,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        parent = self.stack[-1]
        recorded, mark = (map_tree(_as_node, args), map_tree(_as_node, kwargs)), len(self.set_here)
        frame = Frame(
            path, module, *recorded, parent=parent, method=method, context=current_modes()
        )
        self._framed.add(path)
        if method == "forward":
            self._watch_methods(module, path)
        parent.children.append(frame)
        self.stack.append(frame)
        try:
            result = forward(*args, **kwargs)
            frame.output = map_tree(_as_node, result)
            self.must_be_unchanged(mark)
        except Exception:
            parent.children.remove(frame)
            raise
        finally:
            self.stack.pop()
        return result

    # what the code changes

    def must_be_unchanged(self, mark: int = 0) -> None:
        """Raise where the frames since `mark` have set an attribute.

        Raises:
            StateChangeError: then; the next call would find another value.
        """
        if len(self.set_here) > mark:
            raise StateChangeError(self.set_here[mark])

    def note_writes(self, since: int = 0) -> None:
        """Note the stored tensors that the calls recorded since a mark change in place."""
        for writer, stored in stored_writes(n for n in self._log[since:] if not n._erased):
            tensor = stored_value(stored)
            if isinstance(tensor, torch.Tensor):
                reason = f"{writer.name} changes {stored.target} in place"
                self.changes.written.setdefault(storage_key(tensor), reason)

    def note_read(self, tensor: torch.Tensor) -> None:
        """Note that control flow depends on the numbers of a stored tensor."""
        self.read[storage_key(tensor)] = self._stored_paths.get(id(tensor), "a buffer")

    def _note_assignment(self, module: nn.Module, name: str, value: Any) -> bool:
        """Note an assignment to an attribute; True where it assigns what is there already."""
        frame = self.stack[-1] if self.stack else None
        if frame is None or id(module) not in self._modules or "_constant" in name:
            return False
        old = {**module.__dict__, **module._parameters, **module._buffers}.get(name)
        is_stored = isinstance(old, torch.Tensor)
        if is_stored and isinstance(value, RefoldProxy) and is_stored_value(value.node, old):
            return True  # `self.n += 1` has changed the tensor itself
        if same_value(old, value) and (name in module.__dict__ or is_stored):
            return False
        path = self._modules[id(module)]
        whole = f"{path}.{name}" if path else name
        self.set_here.append(f"its code sets {whole}, which stays for the next call")
        self.was_set.add((id(module), name))
        if module is not frame.module:
            where = f"the code of {frame.path}" if frame.path else "code outside it"
            self.changes.assigned.setdefault(id(module), f"{where} sets its {name}")
        if is_stored and isinstance(value, fx.Proxy):
            raise StateChangeError(self.set_here[-1])
        return False

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
            traced = any(isinstance(leaf, fx.Proxy) for leaf in leaves((args, kwargs)))
            current = self.stack[-1] if self.stack else None
            if not traced or current is None or current.module is not module:
                return bound(*args, **kwargs)
            return self._run(module, path, name, bound, args, kwargs)

        return call

    def _roll_back(self, mark: int) -> None:
        while len(self._log) > mark:
            node = self._log.pop()
            if node.graph is self.graph and not node._erased:
                self._frame_nodes(node).remove(node)
                self.graph.erase_node(node)
        alive = {id(node) for node in self._log}
        self._stored = {k: p for k, p in self._stored.items() if id(p.node) in alive}

    def _frame_nodes(self, node: fx.Node) -> list[fx.Node]:
        return cast(Frame, node.meta["frame"]).nodes

    # nodes

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Record a node as owned by the frame that runs."""
        node = super().create_node(*args, **kwargs)
        frame = self.stack[-1]
        node.meta["frame"] = frame
        if current_modes() != frame.context:
            node.meta["context"] = True
        frame.nodes.append(node)
        self._log.append(node)
        return node

    def proxy(self, node: fx.Node) -> RefoldProxy:
        """Return the proxy of a node."""
        return RefoldProxy(node, self)

    def create_arg(self, a: Any) -> Any:
        """Turn a value into an argument; stored tensors become nodes, dict subclasses stay."""
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, OrderedDict) or (isinstance(a, dict) and type(a) is not dict):
            kind, table = cast("type[Any]", type(a)), cast("dict[Any, Any]", a)
            if kind.__module__ != "torch.fx.immutable_collections":
                pairs = [(key, self.create_arg(item)) for key, item in table.items()]
                return self.create_node("call_function", kind, (pairs,), {})
        if isinstance(a, torch.Tensor) and (path := self._stored_paths.get(id(a))) is not None:
            return self._stored_proxy(path, a).node
        return super().create_arg(a)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Turn reads of parameters and buffers into `get_attr` nodes, one for each frame."""
        wanted = isinstance(attr_val, nn.Parameter) or (
            self.proxy_buffer_attributes and isinstance(attr_val, torch.Tensor)
        )
        path = self._stored_paths.get(id(attr_val)) if wanted else None
        if path is None and id(attr_val) in self._stored_paths:
            self.note_read(attr_val)
        return attr_val if path is None else self._stored_proxy(path, attr_val)

    def _stored_proxy(self, path: str, tensor: torch.Tensor) -> RefoldProxy:
        frame = self.stack[-1]
        key = (id(frame), id(tensor))
        if key not in self._stored:
            node = self.create_node("get_attr", stored_path(frame, path, tensor), (), {})
            node.meta["stored"] = tensor
            readable = not isinstance(tensor, nn.Parameter)
            self._stored[key] = RefoldProxy(node, self, tensor, readable)
        return self._stored[key]

    # the root

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Make a placeholder for every argument without a default; the others keep theirs."""
        own = self.root.__dict__.get("forward")  # replaced on the instance
        run = MethodType(root_fn, self.root) if own is None else own
        parameters = list(inspect.signature(run).parameters.values())
        frame = self.stack[-1]
        args: list[Any] = []
        names: list[str] = []
        for parameter in parameters:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            if parameter.default is not parameter.empty:
                continue
            proxy = self.create_proxy("placeholder", parameter.name, (), {})
            args.append(proxy)
            names.append(parameter.name)
            frame.kwargs[parameter.name] = proxy.node
        positional = {p.name for p in parameters if p.kind is p.POSITIONAL_ONLY}

        def call(*values: Any) -> Any:
            named = dict(zip(names, values, strict=True))
            first = [named.pop(name) for name in names if name in positional]
            result = run(*first, **named)
            frame.output = map_tree(_as_node, result)
            return result

        return call, args

    @contextmanager
    def _rooted(self, root: nn.Module) -> Generator[None]:
        self.root_frame = Frame("", root, context=current_modes())
        self.stack = [self.root_frame]
        self._watch_methods(root, "")
        self._modules = {id(module): path for path, module in root.named_modules()}
        self._stored_paths = {}
        for table in (root.named_buffers(), root.named_parameters()):
            for name, tensor in table:
                self._stored_paths[id(tensor)] = name
        try:
            yield
        finally:
            self.stack = []

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Trace `root` (a throw-away skeleton) and return its flat graph."""
        watched = watched_attributes(self._note_assignment)
        with self._rooted(root), tensors_are_tensors(root), watched, untouched(root):
            graph = super().trace(root, concrete_args)
        self.must_be_unchanged()
        self.note_writes()
        for key in self.read.keys() & self.changes.written.keys():
            what = f"its code branches on {self.read[key]}, which changes"
            raise StateChangeError(f"{what}: {self.changes.written[key]}")
        drop_checks(graph, cast(Frame, self.root_frame))
        return graph


def _as_node(value: Any) -> Any:
    return value.node if isinstance(value, fx.Proxy) else value


def _accept_any_rank(value: Any) -> None:
    """Stand for a norm's check of its input's rank, which a traced value cannot answer."""
