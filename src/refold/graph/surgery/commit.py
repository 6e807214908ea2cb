"""Write a plan back into a structural copy of the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, cast

import torch
from torch import fx, nn

from refold.errors import InputError
from refold.graph.copies.held import ATOMS
from refold.graph.copies.modules import (
    all_modules,
    modules_by_path,
    names_of_modules,
    stored_tensors,
    submodule,
)
from refold.graph.copies.watching import Absent
from refold.graph.surgery.contents import Contents, words_of
from refold.graph.surgery.edits import Edits, alive
from refold.graph.surgery.fixed import fixed_readings
from refold.graph.surgery.frames import FramePlan
from refold.graph.surgery.generated import (
    Method,
    fix_attributes,
    fix_contents,
    guard_methods,
    has_new_forward,
    method_from_graph,
    refuse_calls,
    regenerate,
    shorten,
)
from refold.graph.surgery.methods_apart import MethodsApart
from refold.graph.surgery.plain_modules import (
    chain_slots,
    is_layer_subclass,
    mentioned_names,
    names_of_overrides,
    plain_module,
)
from refold.graph.surgery.shortcuts import asks_for_classes, shortcut
from refold.graph.trace.frames import Frame, ancestors, is_inside, map_tree, walk
from refold.graph.trace.leaves import is_layer
from refold.graph.trace.recorder.plain_contents import (
    contents,
    holds_plain,
    is_flag,
    is_hashable,
    kept,
)

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)


class Commit:
    """One write-back: new content first, then generated forwards, then removal of what is unused.

    Args:
        edits: the record of the editor.
        target: a fresh skeleton of the whole model.
        steps: the original nodes that each step of a fold has joined.
    """

    def __init__(
        self, edits: Edits, target: nn.Module, steps: Iterable[Iterable[fx.Node]] = ()
    ) -> None:
        self.edits, self.steps = edits, [*map(set, steps)]
        self.capture = edits.capture
        self.target = target
        try:
            self.root = submodule(target, self.capture.path)
        except AttributeError as error:
            raise InputError(
                f"the target has no module {self.capture.path!r}: pass a fresh skeleton"
            ) from error
        self.plan = FramePlan(edits)
        self.old = dict(modules_by_path(self.root))
        self.names = names_of_modules(self.root)
        self.swaps: dict[int, nn.Module] = {}
        self.users: dict[int, list[Frame]] = {}  # filled when first asked for
        self.places: dict[str, nn.Module] = {}  # before any generated container changes
        calls = (node for node in edits.inserted if node.op == "call_module")
        self._inserted = {cast(str, node.target) for node in calls}

    def run(self) -> nn.Module:
        """Apply everything; return the target, or what took its place."""
        self._new_content()
        self.places = dict(modules_by_path(self.root, every_name=True))
        changed = [f for f in walk(self.capture.root) if self.plan.status[f] != "clean"]
        self._constants(changed)
        for frame in changed:
            self._generate(frame)
        if changed:
            self._remove_unused(changed)
        for frame in reversed(changed):
            self._leave_layer_class(frame)
        self._guard_methods()
        self._shorten()
        swap_modules(self.target, self.swaps)
        self._fix_attributes(changed)
        return self.swaps.get(id(self.target), self.target)

    # new content

    def _new_content(self) -> None:
        swaps: dict[int, nn.Module] = {}
        for path, module in self.edits.modules.items():
            if path not in self._inserted:
                swaps[id(self.old[path])] = module
        for node in self.edits.identities:
            old = self.old[cast(str, node.target)]
            swaps[id(old)] = nn.Identity().train(old.training)
        swap_modules(self.target, swaps)
        calls = (n for n in self.edits.inserted if alive(n) and n.op == "call_module")
        for node in sorted(calls):  # as they run: a state_dict has one order every time
            path = cast(str, node.target)
            place_module(self.root, path, self.edits.modules[path])

    def _constants(self, changed: list[Frame]) -> None:
        """Store tensors that the trace computed, so that a generated forward can read them."""
        for frame in changed:
            graph = self.plan.bodies.get(frame)
            for node in graph.nodes if graph is not None else ():
                name = cast(str, node.target)
                if node.op != "get_attr" or hasattr(self._module(frame), name.split(".")[0]):
                    continue
                made = submodule(self.capture.module, frame.path)
                is_buffer = name in made._buffers  # of a fold; else a tensor of the trace
                value = getattr(made if is_buffer else self.capture.module, name, None)
                if isinstance(value, torch.Tensor):
                    stays = is_buffer and name not in made._non_persistent_buffers_set
                    self._module(frame).register_buffer(name, value, persistent=stays)

    def _module(self, frame: Frame) -> nn.Module:
        return self.places[frame.path]

    # generated forwards

    def _generate(self, frame: Frame) -> None:
        module = self._module(frame)
        graph = self.plan.bodies.get(frame)
        if graph is None:
            if self._is_refused(frame):
                refuse_calls(module, frame.method, self.capture.full(frame.path))
        elif isinstance(module, fx.GraphModule):
            module.graph = graph
        elif _runs_in_order(module) and (slots := self._slots(frame, graph)):
            module.__dict__["_modules"] = slots
        else:
            regenerate(module, {frame.method: method_from_graph(graph)})

    def _is_refused(self, frame: Frame) -> bool:
        """Say whether the code of a frame stands above it now, and is called nowhere any more."""
        is_inline = self.plan.status[frame] == "inline"
        return is_inline and (frame.path, frame.method) not in self.plan.stays_called

    def _guard_methods(self) -> None:
        """Let methods beside forward raise where they would take folds apart."""
        kinds = {path: type(module) for path, module in self.old.items() if path in self.places}
        refused = {(f.path, f.method) for f in self.plan.status if self._is_refused(f)}
        apart = MethodsApart(self.edits, self.steps, self.names)
        for path, guard, names in apart.guards(kinds):
            module = self.places[path]
            own = [name for name in names if (path, name) not in refused]
            own = [name for name in own if name not in module.__dict__]
            own = [name for name in own if name != "forward" or not has_new_forward(module)]
            if own and not isinstance(module, fx.GraphModule):
                guard_methods(module, guard, own)
        for path, guard, names in apart.guards_above(self._holders()):
            module = submodule(self.target, path)
            own = [name for name in names if name not in module.__dict__]
            if own and not isinstance(module, fx.GraphModule):
                guard_methods(module, guard, own)

    def _holders(self) -> Iterator[tuple[str, str, type]]:
        """Yield the modules that hold the captured root: path, that of the root below, class."""
        parts = self.capture.path.split(".") if self.capture.path else []
        for depth in range(len(parts)):
            path = ".".join(parts[:depth])
            yield path, ".".join(parts[depth:]), type(submodule(self.target, path))

    def _fix_attributes(self, changed: list[Frame]) -> None:
        """Let modules refuse other values of the attributes that the fold takes for granted."""
        written = dict.fromkeys((*changed, *self.plan.opened))
        values: dict[str, dict[str, Any]] = {}
        holders: dict[Frame, dict[tuple[str, str], Any]] = {}
        for frame, read in fixed_readings(self.edits, written, self.steps):
            if read.value is Absent or is_flag(read.value):
                values.setdefault(read.path, {}).setdefault(read.name, read.value)
            if _may_change_unheard(read.value):
                carrier = self._carrier(frame, read.path)
                below = read.path.removeprefix(carrier.path).removeprefix(".")
                holders.setdefault(carrier, {})[below, read.name] = read.value
        for path, own in values.items():
            module = self.places.get(path)
            if module is not None and not isinstance(module, fx.GraphModule):
                fix_attributes(module, self.capture.full(path), own)
        stored = frozenset(id(tensor) for _, tensor in stored_tensors(self.target))
        for frame, held in holders.items():
            self._fix_contents(frame, held, stored)

    def _shorten(self) -> None:
        """Let calls of modules that only run their children do without what a call costs."""
        before = set(map(id, self.old.values()))
        for frame in walk(self.capture.root):
            module = self.places.get(frame.path)
            if module is None or frame.method != "forward" or id(module) in self.swaps:
                continue
            if any(asks_for_classes(type(above.module)) for above in ancestors(frame)):
                continue
            if count := shortcut(module, self.plan.bodies.get(frame), before):
                shorten(module, count)

    def _carrier(self, frame: Frame, path: str) -> Frame:
        """Return the frame whose forward runs the code of another, and holds a module."""
        while frame.parent is not None and (
            self.plan.status[frame] == "inline"
            or frame.method != "forward"
            or not f"{path}.".startswith(f"{frame.path}.")
        ):
            frame = frame.parent
        return frame

    def _fix_contents(
        self, frame: Frame, held: dict[tuple[str, str], Any], stored: frozenset[int]
    ) -> None:
        module = self.places.get(frame.path)
        if module is None or id(module) in self.swaps or "forward" in module.__dict__:
            return
        if isinstance(module, fx.GraphModule):
            return
        kinds = {type(below.module) for below in walk(frame)}
        words = words_of(kinds, [*held.values()])
        parts = dict(modules_by_path(module, every_name=True))
        now = {
            (path, name): kept(contents(parts[path].__dict__.get(name), words, stored=stored))
            for path, name in held
            if path in parts  # else nobody reaches it any more
        }
        fix_contents(module, Contents(self.capture.full(frame.path), now, words))

    def _slots(self, frame: Frame, graph: fx.Graph) -> dict[str, nn.Module] | None:
        if self._used_elsewhere(frame):
            return None
        prefix = frame.path + "." if frame.path else ""
        below = (path.removeprefix(prefix) for path in self._inserted if path.startswith(prefix))
        return chain_slots(self._module(frame), graph, set(below))

    def _used_elsewhere(self, frame: Frame) -> bool:
        """Say whether code outside a frame calls or reads a part of its module by itself."""
        users = self._users_of()
        parts = {id(part) for part in all_modules(self._module(frame))}
        if any(not is_inside(user, frame) for part in parts for user in users.get(part, ())):
            return True
        rest = Counter[int]()  # calls in other captures
        for path, count in self.capture.calls.items():
            rest[id(self._at(path))] += count
        return any(rest[part] > len(users.get(part, ())) for part in parts)

    def _users_of(self) -> dict[int, list[Frame]]:
        """Return the frames that call each layer, or read tensors of it, today."""
        if not self.users:
            for node in self.capture.graph.nodes:
                if node.op in ("call_module", "get_attr"):
                    path = cast(str, node.target)
                    path = path.rpartition(".")[0] if node.op == "get_attr" else path
                    self.users.setdefault(id(self._at(path)), []).append(self.edits.home[node])
        return self.users

    def _leave_layer_class(self, frame: Frame) -> None:
        """Replace a changed instance of a torch.nn layer class: it is no such layer any more."""
        module, graph = self._module(frame), self.plan.bodies.get(frame)
        if graph is None or frame.method != "forward" or not is_layer_subclass(type(module)):
            return
        plain = plain_module(module, graph)
        plain.training = module.training
        self.swaps[id(module)] = self.swaps.get(id(plain), plain)

    # removal

    def _remove_unused(self, changed: list[Frame]) -> None:
        live = self._live_modules()
        dead = {
            id(self._at(path))
            for path in self._dead_paths()
            if not any(id(below) in live for below in all_modules(self._at(path)))
        }
        for holder in all_modules(self.root):
            _drop_children(holder, dead, self._passing(holder))
        _drop_empty(self.root, dead, live)
        bare = {id(owner) for owner in self._drop_tensors(changed)} - live
        for holder in all_modules(self.root):
            _drop_children(holder, bare, set())

    def _passing(self, holder: nn.Module) -> set[int]:
        """Return the children that hand on what the layer before them gives, and keep their place.

        They took part in a fold whose layer is still there, or other methods call them.
        """
        found = {
            name: id(child) for name, child in holder._modules.items() if type(child) is nn.Identity
        }
        names = mentioned_names(type(holder)) if found else set[str]()
        return {key for name, key in found.items() if name in names or key in self._behind_hosts}

    @cached_property
    def _behind_hosts(self) -> set[int]:
        """The bypassed layers, by id, behind a layer of the model that took them in."""
        hosts = ((node, self.edits.now(node)) for node in self.edits.identities)
        return {
            id(self._at(cast(str, node.target)))
            for node, host in hosts
            if alive(host) and host.op == "call_module"
            if host not in self.edits.inserted
        }

    def _at(self, path: str) -> nn.Module:
        if path in self._inserted:  # it may sit at the index of a removed layer by now
            return self.edits.modules[path]
        return self.places[path]

    def _live_modules(self) -> set[int]:
        """Return the modules that are used: layers called or read, frames with a call."""
        live = set(self._users_of())
        for frame in walk(self.capture.root):
            if self.plan.has_nodes(frame):
                live.add(id(self._module(frame)))
        for path, count in self.capture.calls.items():
            if count > 0:
                live.add(id(self._at(path)))
        return live

    def _dead_paths(self) -> set[str]:
        """Return modules that lost their only call below a frame whose forward was generated."""
        paths: set[str] = set()
        for node in self.edits.before:
            op, target, _, _ = self.edits.before[node]
            generated = self._is_generated(self.edits.home[node])
            if op == "call_module" and not alive(node) and generated:
                paths.add(cast(str, target))
        for frame in walk(self.capture.root):
            parent = frame.parent
            if frame.method != "forward" or parent is None:
                continue
            if self._is_generated(parent) and not self.plan.has_nodes(frame):
                paths.add(frame.path)
        return paths

    def _is_generated(self, frame: Frame) -> bool:
        return self.plan.status[frame] != "clean"

    def _drop_tensors(self, changed: list[Frame]) -> Iterator[nn.Module]:
        """Delete parameters and buffers that only removed nodes have read; yield emptied layers.

        A layer that is still called reads all of its own.
        """
        nodes = [n for n in self.edits.before if self.edits.before[n][0] == "get_attr"]
        read = {cast(str, node.target) for node in nodes if alive(node)}
        calls = (node for node in self.capture.graph.nodes if node.op == "call_module")
        called = {id(self._at(cast(str, node.target))) for node in calls}
        frames, owners = set(changed), dict[int, nn.Module]()
        for node in nodes:
            path = cast(str, node.target)
            if alive(node) or path in read or self.edits.home[node] not in frames:
                continue
            owner_path, _, name = path.rpartition(".")
            owner = self._at(owner_path)
            if id(owner) in called:
                continue
            for table in (owner._parameters, owner._buffers):
                _forget(table, name, stays=is_layer(owner))
            owners[id(owner)] = owner
        for owner in owners.values():
            _keep_printable(owner)
            if is_layer(owner) and not any(True for _ in owner.parameters()):
                yield owner


def _may_change_unheard(value: Any) -> bool:
    """Say whether what a value holds may become something else without an assignment."""
    if isinstance(value, torch.Tensor):
        return True
    return holds_plain(value) and not (
        isinstance(value, tuple) and is_flag(value) and is_hashable(value)
    )


def _forget(table: dict[str, Any], name: str, *, stays: bool) -> None:
    """Take a tensor away; a layer keeps the name, by which it tells that it has none."""
    if stays and name in table:
        table[name] = None
    else:
        table.pop(name, None)


def _keep_printable(module: nn.Module) -> None:
    """Let a module be printed although what it says of itself asks for a tensor that is gone."""
    try:
        module.extra_repr()
    except Exception:  # any code of the model
        regenerate(module, {"extra_repr": Method("def forward(self):\n    return ''\n")})


def _runs_in_order(module: nn.Module) -> bool:
    """Say whether a module calls its children one after the other, as a Sequential does."""
    own = type(module).forward is nn.Sequential.forward
    return own and "forward" not in module.__dict__


def _drop_children(holder: nn.Module, dead: set[int], kept: set[int]) -> None:
    for name, child in list(holder._modules.items()):
        if child is None or id(child) not in dead or id(child) in kept:
            continue
        is_named = name in names_of_overrides(type(holder))
        if isinstance(holder, _CONTAINERS) or is_named:  # length and indices of containers stay
            holder._modules[name] = nn.Identity().train(child.training)
            dead.add(id(holder._modules[name]))
        else:
            del holder._modules[name]


def _drop_empty(root: nn.Module, dead: set[int], live: set[int]) -> None:
    """Remove containers of which only dead children are left."""
    for holder in reversed(all_modules(root)):  # inner containers first
        for child in list(holder._modules.values()):
            if not isinstance(child, _CONTAINERS) or id(child) in live or not child._modules:
                continue
            if all(id(item) in dead for item in child._modules.values()):
                dead.add(id(child))
                _drop_children(holder, {id(child)}, set())


def place_module(root: nn.Module, path: str, module: nn.Module) -> None:
    """Register `module` at `path` below `root`."""
    parent_path, _, name = path.rpartition(".")
    submodule(root, parent_path)._modules[name] = module


def swap_modules(root: nn.Module, swaps: dict[int, nn.Module]) -> None:
    """Replace modules (by identity) below `root`: under every name and in plain lists."""
    if not swaps:
        return

    def swapped(value: Any) -> Any:
        return swaps.get(id(value), value) if isinstance(value, nn.Module) else value

    inserted = (part for new in swaps.values() for part in all_modules(new))
    for holder in (*all_modules(root), *inserted):
        for name, child in holder._modules.items():
            if id(child) in swaps:
                holder._modules[name] = swaps[id(child)]
        own = holder.__dict__
        for name in own.keys() - _OF_EVERY_MODULE:
            value = own[name]
            if type(value) not in ATOMS and _mentions(value, swaps):
                own[name] = map_tree(swapped, value)


def _mentions(value: Any, swaps: dict[int, nn.Module]) -> bool:
    kind = type(value)
    if kind is list or kind is tuple:
        return any(id(item) in swaps for item in value)
    if kind is dict:
        return any(id(item) in swaps for item in cast("dict[Any, Any]", value).values())
    return id(value) in swaps
