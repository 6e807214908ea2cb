"""Frames after an edit: does the module's own code still compute the graph, or is it generated?

A `FramePlan` decides for every frame; a `FrameBody` is the graph of a generated forward.
"""

from __future__ import annotations

import enum
import inspect
import operator
from collections import Counter
from typing import Any, Literal, cast

import torch
from torch import fx

from refold.errors import RefusedError
from refold.graph.copies.modules import submodule
from refold.graph.surgery.edits import Edits, UnwritableError, alive
from refold.graph.surgery.generated import NamesFrom, check_baked
from refold.graph.surgery.plain_modules import is_layer_subclass
from refold.graph.trace.code.reads import attributes_read
from refold.graph.trace.code.source import mentions
from refold.graph.trace.frames import (
    Frame,
    ancestors,
    is_struct,
    leaves,
    map_tree,
    nodes_in,
    tree_items,
    walk,
)

_PLAIN = (int, float, complex, str, bool, type(None), type(...), enum.Enum, slice, range)
_TORCH_PLAIN = (torch.dtype, torch.device, torch.layout, torch.memory_format)


class FrameBody:
    """One frame as a graph of its own: placeholders of its signature, child calls, own nodes.

    A child frame that is closed is one call of the child; the nodes of any other child are copied
    in. Paths stay relative to the captured root until `relative` shortens them.
    """

    def __init__(self, plan: FramePlan, frame: Frame) -> None:
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
        if self.frame.fixed is not None:
            raise self._refusal(self.frame.fixed)
        if self.frame in self.plan.decides and self.plan.missed(self.frame):
            raise self._refusal(self.plan.decides[self.frame])
        self._placeholders()
        for node in self.plan.within.get(self.frame, ()):
            if alive(node) and node.op != "placeholder":
                self._emit(node)
        for frame in (self.frame, *self.opened):  # whose code is written down as it ran
            if frame in self.plan.decides and (reason := self.plan.other_path(frame)):
                raise self._refusal(reason)
        self.graph.output(map_tree(self._result, self._literal(self.frame.output)))
        self._drop_unread()
        self.plan.opened |= self.opened
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
                place = self.graph.placeholder(str(parameter.replace(annotation=parameter.empty)))
                if mentions(getattr(self.frame.module, self.frame.method), parameter.name):
                    is_named = parameter.kind is parameter.VAR_KEYWORD
                    checks.append((place, {} if is_named else (), parameter.name))
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
        self._name_only([parameter.kind for parameter in parameters])

    def _name_only(self, kinds: list[Any]) -> None:
        """Take by name alone what the module takes so."""
        only, rest = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_POSITIONAL
        if only in kinds and rest not in kinds:
            self.graph.set_codegen(NamesFrom(kinds.index(only)))

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
                if child.fixed is not None:
                    raise self._refusal(child.fixed)
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
            raise self._refusal(f"it reads {value.name}, which is not one of its arguments")
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
        if isinstance(root.__dict__.get(path), torch.Tensor):
            return path  # a constant of the recording, which the module gets
        raise self._refusal(f"it uses {path}, which is not below it")

    # result

    def _literal(self, tree: Any) -> Any:
        """Turn dataclasses and dict subclasses of the output into calls that build them."""
        if is_struct(tree):
            items = [map_tree(self._result, self._literal(item)) for item in tree]
            return _Built(self.graph.call_function(type(tree), (items,)))
        if isinstance(tree, tuple) and not hasattr(cast(Any, tree), "_fields"):
            return tuple(self._literal(item) for item in cast("tuple[Any, ...]", tree))
        if isinstance(tree, list):
            return [self._literal(item) for item in cast("list[Any]", tree)]
        if type(tree) is dict:
            return {key: self._literal(item) for key, item in cast("dict[Any, Any]", tree).items()}
        if isinstance(tree, dict):
            pairs = [(k, self._literal(v)) for k, v in cast("dict[Any, Any]", tree).items()]
            return _Built(self.graph.call_function(type(tree), (map_tree(self._result, pairs),)))
        # A named tuple as well: older versions of torch.fx write its class without importing it.
        named = {key: item for _, key, item in tree_items(tree)}
        if isinstance(tree, tuple):
            named = cast("dict[Any, Any]", cast(Any, tree)._asdict())
        if not named:
            return tree
        values = {key: map_tree(self._result, self._literal(v)) for key, v in named.items()}
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


Status = Literal["clean", "dirty", "inline"]


class FramePlan:
    """The status of every frame, children before parents, and the bodies to generate.

    clean: class and forward stay. dirty: a generated forward replaces its own. inline: it cannot be
    regenerated on its own, so its nodes move into its parent's generated forward.
    """

    def __init__(self, edits: Edits) -> None:
        self.edits = edits
        self.status: dict[Frame, Status] = {}
        self.bodies: dict[Frame, fx.Graph] = {}
        self.opened: set[Frame] = set()  # copied into the body of a frame above
        self.owned: dict[Frame, list[fx.Node]] = {}
        for node, frame in edits.home.items():
            self.owned.setdefault(frame, []).append(node)
        self.within: dict[Frame, list[fx.Node]] = {}  # in the order of the graph
        for node in edits.capture.graph.nodes:
            for frame in ancestors(edits.home[node]):
                self.within.setdefault(frame, []).append(node)
        self.root = edits.capture.root
        self._stored = _only_stored(edits.capture.graph)
        self._lost = edits.lost_layers()
        self._lost_below = _by_holder(self._lost)
        self.decides = _decisions(edits)
        counts = Counter((f.path, f.method) for f in walk(self.root))
        self.repeated = {f for f in walk(self.root) if counts[f.path, f.method] > 1}
        for frame in reversed(list(walk(self.root))):
            self._decide(frame)
        clean = (frame for frame in self.repeated if self.status[frame] == "clean")
        self.stays_called = {(frame.path, frame.method) for frame in clean}  # by some of its calls

    def _decide(self, frame: Frame) -> None:
        self.status[frame] = "clean"
        if self._is_clean(frame):
            return
        self.status[frame] = "dirty"
        if frame is self.root:
            try:
                self.bodies[frame] = FrameBody(self, frame).build()
            except RefusedError as error:
                raise UnwritableError(str(error), self._changed(frame)) from error
        elif frame.fixed is not None:
            raise UnwritableError(frame.fixed, self._changed(frame))
        elif frame in self.repeated or self._is_gone(frame) or not self.is_closed(frame):
            self.status[frame] = "inline"
        else:
            try:
                self.bodies[frame] = FrameBody(self, frame).build()
            except RefusedError:
                self.status[frame] = "inline"

    # what the code of a frame delivers

    def delivered(self, value: fx.Node, frame: Frame) -> fx.Node | None:
        """Return what the unchanged code of `frame` holds where it held `value`."""
        home = self.edits.home[value]
        if home is frame:
            if value in self.edits.identities:
                return self.delivered(self.edits.before[value][2][0], frame)
            return value
        if self.edits.inside(value, frame):
            child = next(f for f in ancestors(home) if f.parent is frame)
            return self.slot(child, value)
        return self.edits.argument(frame, value)

    def slot(self, frame: Frame, leaf: fx.Node) -> fx.Node | None:
        """Return what a frame returns today where it returned `leaf`; None when that is dead."""
        if self.status[frame] == "clean":
            return self.delivered(leaf, frame)
        inputs = self.edits.inputs(frame)
        if not self.edits.inside(leaf, frame):
            return self.edits.argument(frame, leaf)
        for value in reversed(self.edits.chain(leaf)):
            if alive(value) and (value in inputs or self.edits.inside(value, frame)):
                return value
        return None

    def slots(self, frame: Frame) -> set[fx.Node | None]:
        """Return everything that a frame returns today."""
        return {self.slot(frame, leaf) for leaf in nodes_in(frame.output)}

    # clean

    def _is_clean(self, frame: Frame) -> bool:
        if any(self._spoils(child) for child in frame.children):
            return False
        if not all(self._node_unchanged(node, frame) for node in self.owned.get(frame, [])):
            return False
        if not all(self._call_unchanged(child, frame) for child in frame.children):
            return False
        return not self.missed(frame)

    def missed(self, frame: Frame) -> set[fx.Node]:
        """Return the calls of layers that are gone, of which a frame's own code reads more."""
        if not self._lost:
            return set()
        below = self._lost_below.get(frame.path, {})
        read = attributes_read(type(frame.module), frame.method, frozenset(below))
        own = {name for name, node in below.items() if self.edits.home[node] is frame}
        owners = {path.rpartition(".")[0] for path in frame.asks}
        asked = {self._lost[path] for path in owners if path in self._lost}
        return asked | {below[name] for name, is_more in read if is_more or name not in own}

    def other_path(self, frame: Frame) -> str | None:
        """Return why the code of a frame would do something else in another call, or None."""
        evidence = self.edits.capture.evidence
        return None if evidence is None else evidence.other_path(frame)

    def _spoils(self, child: Frame) -> bool:
        if self.status[child] == "inline":
            return True
        own_method = child.method != "forward" and self.status[child] == "dirty"
        return own_method and is_layer_subclass(type(child.module))

    def _node_unchanged(self, node: fx.Node, frame: Frame) -> bool:
        if node in self.edits.inserted:
            return not alive(node)
        if not alive(node):
            return node in self.edits.identities
        op, target, args, kwargs = self.edits.before[node]
        if (op, target) != (node.op, node.target):
            return False
        expected = leaves(map_tree(lambda v: self._expect(v, frame), (args, kwargs)))
        current = leaves((node.args, dict(node.kwargs)))
        return len(expected) == len(current) and all(map(_same, expected, current))

    def _expect(self, leaf: Any, frame: Frame) -> Any:
        return self.delivered(leaf, frame) if isinstance(leaf, fx.Node) else leaf

    def _call_unchanged(self, child: Frame, frame: Frame) -> bool:
        passed = nodes_in((child.args, child.kwargs))
        return all(
            self.delivered(leaf, frame) is self.edits.argument(child, leaf) for leaf in passed
        )

    def _changed(self, frame: Frame) -> set[fx.Node]:
        """Return the nodes because of which a frame's own code no longer does."""
        found = self.missed(frame)
        for node in self.owned.get(frame, []):
            if not self._node_unchanged(node, frame):
                found.update((node, *self._read_anew(node, frame)))
        for child in frame.children:
            if self._spoils(child):
                found |= self._changed(child)
            for leaf in nodes_in((child.args, child.kwargs)):
                if self.delivered(leaf, frame) is not self.edits.argument(child, leaf):
                    found.update((leaf, self.edits.argument(child, leaf)))
        return found

    def _read_anew(self, node: fx.Node, frame: Frame) -> set[fx.Node]:
        """Return the values that a node no longer reads, or did not read."""
        if node in self.edits.inserted or not alive(node):
            return set()
        now = set(node.all_input_nodes)
        held = {self.delivered(leaf, frame): leaf for leaf in nodes_in(self.edits.before[node][2:])}
        gone = {leaf for value, leaf in held.items() if value not in now}
        return gone | {value for value in now if value not in held}

    # closed

    def _is_gone(self, frame: Frame) -> bool:
        """Say whether nothing of a frame is left, not even handing its input on."""
        return not self.has_nodes(frame) and None in self.slots(frame)

    def has_nodes(self, frame: Frame) -> bool:
        """Say whether anything inside a frame is still computed."""
        return any(alive(node) for below in walk(frame) for node in self.owned.get(below, []))

    def is_closed(self, frame: Frame) -> bool:
        """Say whether a frame reads only its arguments and is read only through its output."""
        inputs, slots = self.edits.inputs(frame), self.slots(frame)
        for below in walk(frame):
            for node in self.owned.get(below, []):
                if alive(node) and not self._stays_within(node, frame, inputs, slots):
                    return False
        return True

    def _stays_within(
        self, node: fx.Node, frame: Frame, inputs: set[fx.Node], slots: set[fx.Node | None]
    ) -> bool:
        inside = self.edits.inside
        if not all(inside(arg, frame) or arg in inputs for arg in node.all_input_nodes):
            return False
        if node in slots or all(inside(user, frame) for user in node.users):
            return True
        outside = [user for user in node.users if not inside(user, frame)]
        return node in self._stored and all(user.op == "output" for user in outside)


def _only_stored(graph: fx.Graph) -> set[fx.Node]:
    """Return the values that code stores for later calls, and that no result shows."""
    [output] = graph.find_nodes(op="output")
    count = output.meta.get("stored values", 0)
    if not count:
        return set()
    told, held = cast("tuple[Any, list[Any]]", output.args[0])
    return {*nodes_in(held[-count:])} - {*nodes_in((told, held[:-count]))}


def _by_holder(calls: dict[str, fx.Node]) -> dict[str, dict[str, fx.Node]]:
    """Return calls by the path of each module above them, each by its path below that one."""
    found: dict[str, dict[str, fx.Node]] = {}
    for path, node in calls.items():
        parts = path.split(".")
        for depth in range(len(parts)):
            held = found.setdefault(".".join(parts[:depth]), {})
            held[".".join(parts[depth:])] = node
    return found


def _decisions(edits: Edits) -> dict[Frame, str]:
    """Return the frames whose code may take another path for another input, with the reason.

    A step that such a path would not hold in has been refused by now; to write a whole forward anew
    is more than that.
    """
    evidence = edits.capture.evidence
    if evidence is None:
        return {}
    return dict(evidence.recorder.unsettled) | dict(evidence.recorder.decisions)


def _same(expected: Any, current: Any) -> bool:
    if expected is current:
        return True
    if isinstance(expected, fx.Node) or isinstance(current, fx.Node):
        return False
    try:
        return bool(expected == current)
    except (RuntimeError, ValueError, TypeError):
        return False
