"""Build the graph of one frame's generated forward from the edited flat graph."""

from __future__ import annotations

import enum
import inspect
import operator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import fx

from refold.errors import RefusedError
from refold.graph.frames import Frame, map_tree, nodes_in, tree_items
from refold.graph.paths import submodule
from refold.graph.regenerate import check_baked
from refold.graph.surgery_edits import alive

if TYPE_CHECKING:
    from refold.graph.surgery_plan import Plan

_PLAIN = (int, float, complex, str, bool, type(None), type(...), enum.Enum, slice, range)
_TORCH_PLAIN = (torch.dtype, torch.device, torch.layout, torch.memory_format)


class FrameBody:
    """One frame as a graph of its own: placeholders of its signature, child calls, own nodes.

    A child frame that is closed is one call of the child; the nodes of any other child are copied
    in. Paths stay relative to the captured root until `relative` shortens them.
    """

    def __init__(self, plan: Plan, frame: Frame) -> None:
        self.plan = plan
        self.edits = plan.edits
        self.frame = frame
        self.graph = fx.Graph()
        self.env: dict[fx.Node, fx.Node] = {}
        self.called: set[Frame] = set()
        self.opened: set[Frame] = set()

    def build(self) -> fx.Graph:
        """Return the graph.

        Raises:
            RefusedError: when a signature, a value or a path cannot be expressed.
        """
        self._placeholders()
        for node in self.plan.order:
            if alive(node) and self.edits.inside(node, self.frame) and node.op != "placeholder":
                self._emit(node)
        self.graph.output(map_tree(self._result, self._literal(self.frame.output)))
        self._drop_unread()
        return self.graph

    def _drop_unread(self) -> None:
        for node in reversed(list(self.graph.nodes)):
            if node.op == "call_function" and node.target is operator.getitem and not node.users:
                self.graph.erase_node(node)

    # arguments

    def _arguments(self) -> tuple[list[inspect.Parameter], dict[str, Any]]:
        """Return what the forward takes, and what the recorded call gave it."""
        try:
            signature = inspect.signature(getattr(self.frame.module, self.frame.method))
        except ValueError as error:  # a built-in function, put there on the instance
            raise self._refusal("its forward has no signature") from error
        try:
            bound = signature.bind(*self.frame.args, **self.frame.kwargs).arguments
        except TypeError as error:
            raise self._refusal(f"its call does not fit its signature ({error})") from error
        return list(signature.parameters.values()), bound

    def _placeholders(self) -> None:
        parameters, bound = self._arguments()
        checks: list[tuple[fx.Node, Any, str]] = []
        for parameter in parameters:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                if bound.get(parameter.name):
                    raise self._refusal(f"it is called through {parameter}")
                continue
            default = parameter.default
            place = self._placeholder(parameter.name, default)
            if parameter.name in bound:
                value = bound[parameter.name]
            elif default is not parameter.empty:
                value = default
            else:
                raise self._refusal(f"its argument {parameter.name} is missing")
            if nodes_in(value):
                self._bind(value, place)
            elif _is_plain(value):
                checks.append((place, value, parameter.name))
        for place, value, name in checks:
            self.graph.call_function(check_baked, (place, value, name))

    def _placeholder(self, name: str, default: Any) -> fx.Node:
        if default is inspect.Parameter.empty:
            return self.graph.placeholder(name)
        if not _is_plain(default):
            raise self._refusal(f"the default of its argument {name} cannot be written down")
        return self.graph.placeholder(name, default_value=default)

    def _bind(self, tree: Any, place: fx.Node) -> None:
        if isinstance(tree, fx.Node):
            self.env.setdefault(self.edits.argument(self.frame, tree), place)
            return
        for access, key, item in tree_items(tree):
            if nodes_in(item):
                self._bind(item, self.graph.call_function(access, (place, key)))

    # nodes

    def _emit(self, node: fx.Node) -> None:
        unit = self._unit(node)
        if unit is None:
            self._copy(node)
        elif unit not in self.called:
            self.called.add(unit)
            self._call(unit)

    def _unit(self, node: fx.Node) -> Frame | None:
        """Return the outermost child frame around `node` that is one call here, or None."""
        chain: list[Frame] = []
        frame: Frame | None = self.edits.home[node]
        while frame is not None and frame is not self.frame:
            chain.append(frame)
            frame = frame.parent
        for child in reversed(chain):
            if child in self.called:
                return child
            if child not in self.opened:
                if self._can_call(child):
                    return child
                self.opened.add(child)
        return None

    def _can_call(self, child: Frame) -> bool:
        if child.method != "forward" or self.plan.status[child] == "inline":
            return False
        if not self.plan.is_closed(child):
            return False
        arguments = map_tree(_is_expressible, (child.args, child.kwargs))
        known = all(value in self.env for value in self.edits.inputs(child))
        return known and all(_leaves_true(arguments))

    def _call(self, child: Frame) -> None:
        if child.context != self.frame.context:
            raise self._refusal(f"it calls {child.path} under a context manager")

        def value(leaf: Any) -> Any:
            if isinstance(leaf, fx.Node):
                return self.env[self.edits.argument(child, leaf)]
            return leaf

        args = cast("tuple[Any, ...]", map_tree(value, child.args))
        kwargs = cast("dict[str, Any]", map_tree(value, child.kwargs))
        result = self.graph.call_module(self.relative(child.path), args, kwargs)
        self._unpack(child, child.output, result)

    def _unpack(self, child: Frame, tree: Any, result: fx.Node) -> None:
        if isinstance(tree, fx.Node):
            value = self.plan.slot(child, tree)
            if value is not None and self.edits.inside(value, child):
                self.env.setdefault(value, result)
            return
        for access, key, item in tree_items(tree):
            if nodes_in(item):
                self._unpack(child, item, self.graph.call_function(access, (result, key)))

    def _copy(self, node: fx.Node) -> None:
        if node.op == "output":
            return
        home = self.edits.home[node]
        if "context" in node.meta or home.context != self.frame.context:
            raise self._refusal("it computes under a context manager (no_grad or autocast)")
        target = node.target
        if node.op in ("call_module", "get_attr"):
            target = self.relative(cast(str, target))
        args = cast("tuple[Any, ...]", fx.map_arg(node.args, self._known))
        kwargs = cast("dict[str, Any]", fx.map_arg(node.kwargs, self._known))
        self.env[node] = self.graph.create_node(node.op, target, args, kwargs)

    def _known(self, value: fx.Node) -> fx.Node:
        if value not in self.env:
            raise self._refusal(f"it reads {value.name}, which is no argument of it")
        return self.env[value]

    def relative(self, path: str) -> str:
        """Return a path below the root as seen from this frame's module."""
        prefix = self.frame.path
        if not prefix:
            return path
        if path.startswith(prefix + "."):
            return path[len(prefix) + 1 :]
        root, module = self.edits.capture.module, self.frame.module
        wanted = submodule(root, path) if path in dict(root.named_modules()) else None
        for name, child in module.named_modules(remove_duplicate=False):
            if wanted is not None and child is wanted:
                return name
        raise self._refusal(f"it uses {path}, which is not below it")

    # result

    def _literal(self, tree: Any) -> Any:
        """Turn dataclasses and dict subclasses of the output into calls that build them."""
        if isinstance(tree, tuple) and not hasattr(cast(Any, tree), "_fields"):
            return tuple(self._literal(item) for item in cast("tuple[Any, ...]", tree))
        if isinstance(tree, list):
            return [self._literal(item) for item in cast("list[Any]", tree)]
        if type(tree) is dict:
            return {key: self._literal(item) for key, item in cast("dict[Any, Any]", tree).items()}
        if isinstance(tree, dict):
            pairs = [(k, self._literal(v)) for k, v in cast("dict[Any, Any]", tree).items()]
            return _Built(self.graph.call_function(type(tree), (map_tree(self._result, pairs),)))
        items = list(tree_items(tree))
        if not items or isinstance(tree, tuple):
            return tree
        values = {key: map_tree(self._result, self._literal(item)) for _, key, item in items}
        return _Built(self.graph.call_function(type(tree), (), values))

    def _result(self, leaf: Any) -> Any:
        if isinstance(leaf, _Built):
            return leaf.node
        if not isinstance(leaf, fx.Node):
            if not _is_expressible(leaf):
                raise self._refusal(f"it returns a {type(leaf).__name__}")
            return leaf
        value = self.plan.slot(self.frame, leaf)
        return None if value is None else self._known(value)

    def _refusal(self, reason: str) -> RefusedError:
        where = self.edits.capture.full(self.frame.path) or "the model"
        return RefusedError(f"{where} cannot get a generated forward: {reason}")


class _Built:
    """A node of the new graph among leaves that are nodes of the flat one."""

    def __init__(self, node: fx.Node) -> None:
        self.node = node


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(item) for item in cast("list[Any]", value))
    if isinstance(value, dict):
        return all(_is_plain(item) for item in cast("dict[Any, Any]", value).values())
    return isinstance(value, (*_PLAIN, *_TORCH_PLAIN))


def _is_expressible(leaf: Any) -> bool:
    return isinstance(leaf, fx.Node) or _is_plain(leaf)


def _leaves_true(tree: Any) -> list[bool]:
    found: list[bool] = []
    map_tree(lambda leaf: found.append(bool(leaf)), tree)
    return found
