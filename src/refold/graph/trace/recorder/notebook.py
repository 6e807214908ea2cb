"""The notebook of a recording: nodes, the tensors that stand for them, numbers made of sizes."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from refold.graph.trace.code.source import tells_people
from refold.graph.trace.effects import mutated
from refold.graph.trace.frames import Frame, leaves, map_tree, tree_items
from refold.graph.trace.leaves import current_modes, stored_path
from refold.graph.trace.recorder.sizes import Ratio, Size, plain
from refold.graph.trace.state import Changes

MARK = "_refold_mark"
DEVICE_MARK = "_refold_device"  # of a tensor without storage: where the real one is
READ_TYPE = "type read"  # where a node stands for the dtype of a value: which one it was
_DEEPEST = 4  # objects that hold objects
_NO_HOLDERS = (type, int, float, str, Ratio, nn.Module)


OPPOSITE = object()


@dataclass(eq=False)
class Flip:
    """Questions of one line of code that a run answers otherwise.

    Args:
        what: what is asked and where, as a reason.
        left: how many more; a loop that asks the same for ever gets a true answer in the end.
        skip: how many to answer truly before.
        always: the answer to all of them, where it is not just the other of yes and no.
    """

    what: str
    left: int = 1
    skip: int = 0
    always: Any = OPPOSITE


@dataclass(frozen=True, eq=False)
class Conditions:
    """How a run differs from one of the model on tensors without storage.

    Args:
        real: whether tensors hold numbers.
        flip: the questions of code to answer otherwise.
        elsewhere: as if the model were of this type and on another device.
    """

    real: bool = False
    flip: Flip | None = None
    elsewhere: torch.dtype | None = None


class Notebook:
    """The graph of one run as it is written, frame by frame.

    Args:
        root: the module that runs, part of a throw-away skeleton.
        changes: what code of the model changes.
        given: how the run differs from the model's own.
    """

    def __init__(self, root: nn.Module, changes: Changes, given: Conditions) -> None:
        super().__init__()
        self.root, self.changes = root, changes
        self.real, self.flip, self.elsewhere = given.real, given.flip, given.elsewhere
        self.graph = fx.Graph()
        self.root_frame = Frame("", root, context=(True, *current_modes()[1:]))
        self.stack = [self.root_frame]
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.late: dict[str, str] = {}
        self.decisions: list[tuple[Frame, str]] = []  # questions that may have other answers
        self.replies: dict[str, list[Any]] = {}  # the answers to them, in order
        self.others: dict[str, tuple[Any, ...]] = {}  # the other answers, where they are known
        self.by_values = set[str]()  # decisions by numbers that tensors were made of
        self.unsettled: list[tuple[Frame, str]] = []  # those that may have any answer
        self.bakes: dict[Frame, str] = {}  # frames whose forward cannot be written down, and why
        self.asked_at: dict[str, str] = {}
        self.constants: dict[str, Tensor] = {}
        self.stored: list[Tensor] = []  # values of this run that objects and later calls get to see
        self.gives_size = set[Frame]()  # frames whose code asks a value for its size
        self.loses_size = set[Frame]()  # and makes a plain number of it
        self.hands_shape = set[Frame]()  # or hands on as many sizes as there are axes
        self.asks_rank = set[Frame]()
        self.asks_form = set[Frame]()  # what else it is: its type, its device, how it lies
        self.device: torch.device | None = None
        self.result: Any = None
        self._paused = 0
        self._stored: dict[tuple[int, int], fx.Node] = {}
        self._twins: dict[int, tuple[Tensor, Tensor]] = {}
        self._are_twins: set[int] = set()
        self._kinds: dict[Frame, list[tuple[str, Any, fx.Node]]] = {}  # dtypes and devices read
        self._static: set[fx.Node] = set()  # made from stored tensors alone
        self._numbers: dict[tuple[int, int], tuple[Any, fx.Node]] = {}
        self.writers: list[fx.Node] = []  # calls that change a value in place
        self.reads = set[int]()  # ids of the tensors that calls are given
        self._stored_paths: dict[int, str] = {}

    def _leave(self, frame: Frame, reason: str) -> None:
        """Note that a frame is none: its code must stay as it is."""
        self.late.setdefault(frame.path, reason)

    # sizes

    def decide(self, answer: bool, *, by_values: bool = False) -> bool:
        """Note that code compared a size, or values that it has computed of sizes."""
        reason = f"its code branches on a size ({where()})"
        if by_values:
            self.by_values.add(reason)
        return self._reply(answer, reason)

    def ask(self, name: str, answer: Any) -> Any:
        """Note that code asked of a value what another call may answer otherwise: yes or no."""
        return self._reply(answer, f"its code asks for {name} ({where()})")

    def ask_around(self, name: str, answer: Any, others: tuple[Any, ...] | None) -> Any:
        """Note that code asked for what is the same wherever it asks, in one call.

        Args:
            name: what it asked for.
            answer: what it is now.
            others: what else it may be in another call; None where that is anything.
        """
        reason = self.asked_at.setdefault(name, f"its code asks for {name} ({where()})")
        if others is None:
            if self._listens():
                self.unsettled.append((self.stack[-1], reason))
            return answer
        self.others[reason] = others
        return self._reply(answer, reason)

    def _listens(self) -> bool:
        return not self._paused and self._is_running()

    def _reply(self, answer: Any, what: str) -> Any:
        if not self._listens():
            return answer
        self.decisions.append((self.stack[-1], what))
        self.replies.setdefault(what, []).append(answer)
        if not self._is_flipped(what):
            return answer
        always = cast(Flip, self.flip).always
        return not answer if always is OPPOSITE else always

    def _is_flipped(self, what: str) -> bool:
        if self.flip is None or self.flip.left == 0 or self.flip.what != what:
            return False
        if self.flip.skip:
            self.flip.skip -= 1
            return False
        self.flip.left -= 1
        return True

    def lose(self) -> None:
        """Note that a size became a plain number, of which nothing more is known."""
        if not self._paused:
            self.loses_size.add(self.stack[-1])

    def write(self) -> None:
        """Note that a size became part of a text: one for people decides nothing."""
        frame = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
        if not tells_people(frame.f_code, frame.f_lineno):
            self.lose()

    def is_cached(self) -> bool:
        """Say whether the code that hashes a size calls a function with a cache."""
        frame = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
        names, scope = frame.f_code.co_names, frame.f_globals
        near = [*(scope.get(name) for name in names), *frame.f_locals.values()]
        cached = any(hasattr(value, "cache_info") for value in near if callable(value)) or any(
            hasattr(getattr(type(value), name, None), "cache_info")
            for value in frame.f_locals.values()
            for name in names
        )
        if not cached and not self._paused:
            reason = f"its code looks a size up in a table ({where()})"
            self.unsettled.append((self.stack[-1], reason))
            self.loses_size.add(self.stack[-1])
        return cached

    def _is_running(self) -> bool:
        return self.result is None

    # tensors and nodes

    def _mark(self, value: Any) -> fx.Node | None:
        if not isinstance(value, Tensor):
            return None
        mark = value.__dict__.get(MARK)
        return mark[1] if mark is not None and mark[0] is self else None

    def is_static(self, node: fx.Node) -> bool:
        """Say whether a value is made from stored tensors alone."""
        return node in self._static

    def rank_of(self, value: Any) -> int | None:
        """Return how many axes a value of this run has; None for anything else."""
        node = value if isinstance(value, fx.Node) else self._mark(value)
        return None if node is None or node not in self.shapes else len(self.shapes[node])

    def _is_followed(self, tensor: Tensor) -> bool:
        """Say whether inputs or stored tensors take part in a value."""
        mark = tensor.__dict__.get(MARK)
        if mark is not None and mark[0] is self:
            return True
        return id(tensor) in self._stored_paths or tensor.is_meta

    def _as_node(self, value: Any) -> Any:
        """Return what stands for a value in the graph; what it does not know it stores."""
        if isinstance(value, Tensor):
            node = self._mark(value)
            return self._stored_node(value) if node is None else node
        return self._number_node(value) if isinstance(value, _MADE_OF_SIZES) else value

    def _stored_node(self, tensor: Tensor) -> fx.Node:
        frame = self.stack[-1]
        key = (id(frame), id(tensor))
        known = self._stored.get(key)
        if known is not None:
            return known
        path = self._stored_paths.get(id(tensor))
        mark = tensor.__dict__.get(MARK)
        if path is None and cast(Any, torch._C)._functorch.peek_interpreter_stack() is not None:
            self._leave(frame, f"its code transforms a function by torch.func or vmap ({where()})")
        elif (mark is not None and mark[0] is self) or (path is None and tensor.is_meta):
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
        self._note_form(node, tensor)
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
        if function in (Tensor.size, Tensor.numel, Tensor.stride):
            node = self._node("call_method", function.__name__, args, {})
        else:
            node = self._node("call_function", function, args, {})
        node.meta["unpacks"] = True
        self._numbers[id(value), id(frame)] = (value, node)
        return node

    def _argument(self, tree: Any) -> Any:
        """Return arguments as a graph holds them."""
        kind = type(tree)
        if kind in _NUMBERS:
            return tree
        if kind is tuple:
            return tuple([self._argument(item) for item in tree])
        return self._as_node(tree) if kind is Tensor else self._nested(tree)

    def _nested(self, tree: Any) -> Any:
        """Return an argument that may hold others, or is of a type of its own."""
        if isinstance(tree, tuple):
            return self._tuple(cast("tuple[Any, ...]", tree))
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
        if not isinstance(value, PLAIN):
            made = list(tree_items(value))
            if made:
                named = {key: self._argument(item) for _, key, item in made}
                return self._node("call_function", type(value), (), named)
            self.bakes.setdefault(self.stack[-1], f"it hands on a {type(value).__name__}")
            self.stored += self.held_in(value)
        return value

    def held_in(self, value: Any, depth: int = 0) -> list[Tensor]:
        """Return the values of this run that a value holds, in objects with attributes as well.

        Args:
            value: a nest; tensors that are its own leaves are left out at the first depth.
            depth: how many objects lie around it.
        """
        found: list[Tensor] = []
        for one in leaves(value):
            if isinstance(one, Tensor):
                found += [one] if depth and self._mark(one) is not None else []
            elif isinstance(one, deque | set | frozenset):
                found += self.held_in(list(cast("Iterable[Any]", one)), depth)
            elif depth < _DEEPEST and hasattr(one, "__dict__") and not isinstance(one, _NO_HOLDERS):
                found += self.held_in(list(vars(one).values()), depth + 1)
        return found

    def _tuple(self, tree: tuple[Any, ...]) -> Any:
        if isinstance(tree, torch.Size):
            self.hands_shape.add(self.stack[-1])
        items = tuple(self._argument(item) for item in tree)
        if not hasattr(tree, "_fields"):
            return items
        kind: Any = type(tree)
        if _looks_inside(kind):
            return self._node("call_function", kind, items, {})
        return kind(*items)

    def _kind(self, value: torch.dtype | torch.device) -> Any:
        """Return a dtype or device, read off the tensor that the code has read it off."""
        for name, known, node in reversed(self._kinds.get(self.stack[-1], [])):
            if known == value:
                return self._read_again(node, name, value) if name else node
        return value

    def _read_again(self, node: fx.Node, name: str, value: torch.dtype | torch.device) -> fx.Node:
        read = self._node("call_function", getattr, (node, name), {})
        read.meta[READ_TYPE] = value
        return read

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
            self.reads.add(id(value))
            if known is None:
                known = self._twins[id(value)] = (value, self._blank(value))
                self._are_twins.add(id(known[1]))
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
        self.reads.add(id(value))
        known = self._twins.get(id(value))
        if known is None:
            twin = value.detach() if isinstance(value, nn.Parameter) else value.detach().clone()
            known = self._twins[id(value)] = (value, twin)
            self._are_twins.add(id(twin))
        return known[1]

    def _results(self, result: Any, node: fx.Node, again: Any = None) -> Any:
        """Let the tensors of a result stand for a node; a known one gets a new name."""
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
            elif MARK in result.__dict__ or self._is_twin(result):
                result = result.detach()
            setattr(result, MARK, (self, node))
            self._note_form(node, result)
            return result
        if isinstance(result, torch.Size):
            return result
        if isinstance(result, tuple | list | dict) or tuple(tree_items(result)):
            self._unpack(result, node)
        return result

    def _note_form(self, node: fx.Node, tensor: Tensor) -> None:
        self.shapes[node] = tuple(tensor.shape)
        node.meta["dtype"] = tensor.dtype

    def _is_twin(self, tensor: Tensor) -> bool:
        return id(tensor) in self._are_twins or id(tensor) in self._stored_paths

    def _unpack(self, tree: Any, node: fx.Node) -> None:
        """Let the tensors of a nest stand for items of a node."""
        if isinstance(tree, Tensor):
            setattr(tree, MARK, (self, node))
            self._note_form(node, tree)
            return
        for access, key, item in tree_items(tree):
            if any(isinstance(leaf, Tensor) for leaf in leaves(item)):
                made = self._node("call_function", access, (node, key), {})
                made.meta["unpacks"] = True
                self._unpack(item, made)

    def _node(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        node = self.graph.create_node(op, target)  # what is given here is searched for symbols
        node.args, node.kwargs = args, kwargs
        return self._own(node)

    def _changed_by(self, node: fx.Node) -> list[fx.Node]:
        """Return the values that a call changes in place, and remember the call."""
        changed = mutated(node)
        if changed:
            self.writers.append(node)
        return changed

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

    def _blank(self, value: Tensor) -> Tensor:
        """Return a tensor without storage in place of a real one."""
        dtype = self._type(value)
        if value.layout is torch.strided and value.is_contiguous():
            made = torch.empty(value.shape, dtype=dtype, device="meta")
        else:
            made = torch.empty_like(value, dtype=dtype, device="meta", requires_grad=False)
        return made.as_subclass(Tensor)

    def _type(self, value: Tensor) -> torch.dtype:
        """Return the type that a tensor is taken to have in this run."""
        dtype = value.dtype
        if self.elsewhere is None or not dtype.is_floating_point:
            return dtype
        return torch.float32 if dtype == self.elsewhere else self.elsewhere


_MADE_OF_SIZES = (Size, Ratio)
_NUMBERS = frozenset({int, float, bool, str, type(None)})
_DEVICES = frozenset({"cpu", "cuda", "mps", "xpu"})
PLAIN = (
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


def _looks_inside(kind: type) -> bool:
    """Say whether a named tuple looks at what it is made of (`PackedSequence`)."""
    return hasattr(kind, "_fields") and any(hasattr(base, "_fields") for base in kind.__bases__)


def where() -> str:
    """Return the line of the model's code that runs, as `file.py:12`."""
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame.f_back is not None and (is_torch(frame) or is_python(frame)):
        frame = frame.f_back
    return f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}"


def is_torch(frame: FrameType) -> bool:
    """Say whether code that runs is torch's or ours."""
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] in ("torch", "refold")


def is_python(frame: FrameType) -> bool:
    """Say whether code that runs is of Python's own library."""
    file = frame.f_code.co_filename
    return file.startswith((_LIBRARY, "<frozen ")) and "-packages" not in file


_LIBRARY = str(Path(os.__file__).parent)
