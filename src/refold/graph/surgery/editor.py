"""Edit a flat graph, then write the edits back into a structural copy of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from refold.errors import InputError, RefusedError
from refold.graph.copies.modules import submodule
from refold.graph.surgery.commit import Commit, place_module
from refold.graph.surgery.edits import Edits, UnwritableError, alive
from refold.graph.trace.capture import Capture
from refold.graph.trace.effects import mutated
from refold.graph.trace.frames import Frame, ancestors, common_ancestor, is_inside, nodes_in


class Editor:
    """The only way a pass edits the flat graph of a capture.

    Args:
        capture: what to edit; its graph changes with every call, its modules are the throw-away
            copy, so `capture.graph_module()` shows the edited network at any time.

    Examples:
        >>> from refold.graph.trace.capture import capture
        >>> from refold.graph.copies.skeleton import skeleton
        >>> net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Dropout()).eval()
        >>> [found] = capture(net)
        >>> conv, drop = [n for n in found.graph.nodes if n.op == "call_module"]
        >>> editor = Editor(found)
        >>> editor.bypass(drop, conv)
        >>> editor.commit(skeleton(net))
        Sequential(
          (0): Conv2d(1, 1, kernel_size=(1, 1), stride=(1, 1))
          (1): Identity()
        )
    """

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.graph = capture.graph
        self.edits = Edits.of(capture)
        pairs = ((args, kwargs) for _, _, args, kwargs in self.edits.before.values())
        stored = (cast(str, n.target) for n in self.graph.nodes if n.op == "get_attr")
        self._owners = {path.rpartition(".")[0] for path in stored}
        self._read = {value for pair in pairs for value in nodes_in(pair)}
        self._left: dict[fx.Node, None] = {}  # new, or without a reader that they had: see sweep

    def replace_module(self, node: fx.Node, module: nn.Module, *, times: int = 1) -> None:
        """Give the layer that `node` calls a new content; its place and name stay.

        Raises:
            InputError: when `node` calls no module.
            RefusedError: when the module is called more than so many times.
        """
        path = self._single_call(node, times)
        module.train(submodule(self.capture.module, path).training)
        self.edits.modules[path] = module
        place_module(self.capture.module, path, module)

    def bypass(
        self, node: fx.Node, value: fx.Node, *, times: int = 1, is_idle: bool = False
    ) -> None:
        """Let every reader of `node` read `value` instead; a bypassed layer leaves an Identity.

        A layer that is called several `times` must be bypassed at each of them. One that `is_idle`
        changes nothing whatever it is given: other code may go on calling what is left of it.
        """
        if node.op == "call_module" and node in self.edits.before:
            path = self._single_call(node, times)
            if self.edits.now(value) is self.edits.now(self._input(node)) and not self._only_read(
                path
            ):
                self.edits.identities.add(node)
                self.edits.idle.update([node] if is_idle else [])
        self._redirect(node, value)
        self._erase(node)

    def insert_module(
        self,
        module: nn.Module,
        arg_nodes: Sequence[fx.Node],
        *,
        before: fx.Node,
        name: str,
        beside: Sequence[fx.Node] = (),
    ) -> fx.Node:
        """Add a call of a new module before a node, in the deepest frame that sees all of them.

        Where it stands for several nodes, `beside`, no frame is deep enough that lacks one of them.

        A module that has a `deploy_name` says itself what the one convolution of its branches is
        called: published weights in deploy form have that name.
        """
        frame = self._visible_frame(arg_nodes, before, beside)
        own = getattr(frame.module, "deploy_name", None)
        if isinstance(own, str) and isinstance(module, _ConvNd) and not hasattr(frame.module, own):
            name = own
        path = self._free_name(frame, name)
        module.train(frame.module.training)
        place_module(self.capture.module, path, module)
        self.edits.modules[path] = module
        with self.graph.inserting_before(before):
            node = self.graph.call_module(path, tuple(arg_nodes))
        self.capture.calls[path] = 1
        return self._own(node, frame)

    def insert_function(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        *,
        before: fx.Node,
        beside: Sequence[fx.Node] = (),
    ) -> fx.Node:
        """Add a call of a function as `insert_module` adds that of a module."""
        with self.graph.inserting_before(before):
            node = self.graph.call_function(fn, args, kwargs or {})
        return self._own(node, self._visible_frame(node.all_input_nodes, before, beside))

    def insert_stored(self, value: Tensor, *, instead: fx.Node, persistent: bool) -> fx.Node:
        """Add a read of a new buffer, which holds a value of the code that computes a node."""
        frame = self.edits.home[instead]
        path = self._free_name(frame, "constant")
        owner = submodule(self.capture.module, frame.path)
        owner.register_buffer(path.rpartition(".")[2], value, persistent=persistent)
        with self.graph.inserting_before(instead):
            node = self.graph.create_node("get_attr", path)
        return self._own(node, frame)

    def replace(self, node: fx.Node, new: fx.Node) -> None:
        """Let every reader of `node` read `new`; `sweep` then removes what nobody reads."""
        self._redirect(node, new)

    def reread(self, reader: fx.Node, value: fx.Node, new: fx.Node) -> None:
        """Let one reader of `value` read `new` instead."""
        reader.replace_input_with(value, new)
        self._left[value] = None

    def discard(self, nodes: Sequence[fx.Node]) -> None:
        """Remove the nodes among these, in-place ones too, that nothing outside them reads."""
        for node in sorted(nodes, reverse=True):
            if alive(node) and not node.users:
                self._erase(node)

    def sweep(self) -> list[fx.Node]:
        """Remove nodes that nobody reads any more; return them.

        Nodes that change a value in place stay, and so does what was never read in the first place.
        """
        removed: list[fx.Node] = []
        while self._left:
            node, _ = self._left.popitem()
            if alive(node) and self._is_dead(node):
                self._erase(node)
                removed.append(node)
        return removed

    def commit(self, target: nn.Module, steps: Iterable[Iterable[fx.Node]] = ()) -> nn.Module:
        """Write the edits into `target`, a fresh skeleton of the whole model; return the model.

        Modules whose dataflow did not change keep class and forward; the others get a generated
        forward in a subclass of their own class.

        Args:
            target: the skeleton.
            steps: the original nodes that each step of a fold has joined.

        Raises:
            UnwritableError: when the captured root itself would have to change and cannot.
        """
        self.settle()
        return Commit(self.edits, target, steps).run()

    def settle(self) -> None:
        """Remove what nobody reads any more, and see that every value is computed before use.

        Raises:
            UnwritableError: when one is not.
        """
        self.sweep()
        self._drop_unhanded()
        self._check_order()
        self.graph.lint()

    # internals

    def _check_order(self) -> None:
        seen: set[fx.Node] = set()
        for node in self.graph.nodes:
            for value in node.all_input_nodes:
                if value not in seen:
                    text = f"the fold would read {value.name} before it is computed"
                    raise UnwritableError(text, {node, value})
            seen.add(node)

    def _drop_unhanded(self) -> None:
        """Remove reads of stored tensors that were only handed to code of which nothing is left."""
        unread = [n for n in self.graph.nodes if n.op == "get_attr" and not n.users]
        if not unread:
            return
        homes = (self.edits.home[node] for node in self.graph.nodes)
        busy = {frame for home in set(homes) for frame in ancestors(home)}
        handed = {value for f in busy for value in nodes_in((f.args, f.kwargs, f.output))}
        for node in unread:
            if node not in handed:
                self._erase(node)

    def _input(self, node: fx.Node) -> fx.Node:
        inputs = self.edits.before[node][2]
        return inputs[0] if inputs and isinstance(inputs[0], fx.Node) else node

    def _only_read(self, path: str) -> bool:
        """Say whether the model also reads tensors of the layer itself (`self.bn.weight`)."""
        return path in self._owners

    def _single_call(self, node: fx.Node, times: int = 1) -> str:
        if node.op != "call_module":
            raise InputError(f"{node.name} calls no module but {node.target}")
        path = cast(str, node.target)
        if self.capture.calls.get(path, 1) > times:
            raise RefusedError(f"{self.capture.full(path)} is called more than once")
        return path

    def _redirect(self, node: fx.Node, new: fx.Node) -> None:
        if node is new:
            raise InputError(f"{node.name} cannot replace itself")
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        self.edits.swapped[node] = new
        self._left[node] = None
        if node in self.capture.elsewhere:
            self.capture.elsewhere[new] = self.capture.elsewhere[node]

    def _erase(self, node: fx.Node) -> None:
        self.edits.home[node].nodes.remove(node)
        if node.op == "call_module":
            path = cast(str, node.target)
            self.capture.calls[path] = self.capture.calls.get(path, 1) - 1
        self._left.update(dict.fromkeys(node.all_input_nodes))
        self.graph.erase_node(node)

    def _is_dead(self, node: fx.Node) -> bool:
        if node.users or node.op in ("placeholder", "output") or mutated(node):
            return False
        return node in self.edits.inserted or node in self.edits.swapped or node in self._read

    def _own(self, node: fx.Node, frame: Frame) -> fx.Node:
        node.meta["frame"] = frame
        self.edits.home[node] = frame
        self.edits.inserted.add(node)
        self._left[node] = None
        after = node.next
        while after.op != "root" and self.edits.home[after] is not frame:
            after = after.next
        place = len(frame.nodes) if after.op == "root" else frame.nodes.index(after)
        frame.nodes.insert(place, node)
        return node

    def _visible_frame(
        self, args: Sequence[fx.Node], before: fx.Node, beside: Sequence[fx.Node] = ()
    ) -> Frame:
        home = common_ancestor([self.edits.home[node] for node in (before, *beside)])
        for frame in ancestors(home):
            if all(self._sees(frame, arg) for arg in args):
                return frame
        return common_ancestor([self.edits.home[before], *(self.edits.home[arg] for arg in args)])

    def _sees(self, frame: Frame, value: fx.Node) -> bool:
        home = self.edits.home[value]
        if home is frame:
            return True
        if is_inside(home, frame):
            below = next(f for f in ancestors(home) if f.parent is frame)
            return value in {self.edits.now(n) for n in nodes_in(below.output)}
        return value in {self.edits.now(n) for n in nodes_in((frame.args, frame.kwargs))}

    def _free_name(self, frame: Frame, name: str) -> str:
        taken = frame.module
        index, free = 0, name
        while hasattr(taken, free) or free in taken._modules:
            index += 1
            free = f"{name}_{index}"
        return f"{frame.path}.{free}" if frame.path else free
