"""Calls of torch in a recording: which become nodes, and how questions of code are answered."""

from __future__ import annotations

from math import prod
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from refold.graph.copies.held import storage_key
from refold.graph.trace.effects import mutated
from refold.graph.trace.frames import leaves, map_tree
from refold.graph.trace.recorder.forms import result_of_call
from refold.graph.trace.recorder.notebook import MARK, Conditions, Notebook, where
from refold.graph.trace.recorder.sizes import Ratio, Size, plain
from refold.graph.trace.recorder.spelling import CHECKS, QUESTIONS, RANDOM, SIZES, VALUES, spell
from refold.graph.trace.state import Changes
from refold.graph.trace.writes import stored_value


class RecordError(Exception):
    """A recording cannot go on; the text says why, for a refusal."""


class UnansweredError(RecordError):
    """Code asks for numbers that the inputs decide."""


class TorchCalls(Notebook, TorchFunctionMode):
    """Writes down every call of torch that code makes, and answers what it asks.

    Args:
        root: the module that runs, part of a throw-away skeleton.
        changes: what code of the model changes.
        given: how the run differs from the model's own.
    """

    def __init__(self, root: nn.Module, changes: Changes, given: Conditions) -> None:
        super().__init__(root, changes, given)
        self.unanswered: str | None = None
        self.asks: dict[str, str] = {}  # paths of frames whose own code does, with the reason
        self._sized = False  # sizes have decided the value that is being found out
        self.runs_all = self.real  # else what calls give is told where that is certain
        self._made: set[int] = set()  # storages that this run has made without inputs
        self._alive: list[Tensor] = []

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
            return self._asked(func, name, args, kwargs)
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
            raise UnansweredError(self.unanswered)
        flat = leaves((args, kwargs))
        given = any(isinstance(leaf, Tensor) for leaf in flat)
        if not self.real and (name in VALUES or not given):
            return func(*args, **kwargs)  # a cache may keep what is made here
        known = None if self.runs_all else result_of_call(func, args, kwargs, flat, self._type)
        is_told = known is not None and known.is_meta  # else it has the numbers of a stored tensor
        result = known if is_told else self._run(func, args, kwargs)
        for leaf in leaves(result):
            if isinstance(leaf, Tensor) and self.real and MARK not in leaf.__dict__:
                setattr(leaf, MARK, (self, None))
        return result

    def _is_unknown(self, tree: Any) -> bool:
        return any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in leaves(tree))

    def _call(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        if name == "to" and id(args[-1]) in self._stored_paths and len(args) == 2:
            self.stack[-1].asks.add(self._stored_paths[id(args[1])])
            args = args[0], _kind_alone(args[1])
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
            known = None if self.runs_all else result_of_call(func, args, kwargs, flat, self._type)
            self.reads.update(map(id, tensors))
            result = self._run(func, args, kwargs) if known is None else known
        if not any(isinstance(leaf, Tensor) for leaf in leaves(result)) and result is not None:
            self.gives_size.add(self.stack[-1])  # a storage knows how many bytes it has
            return result
        if result is None and not tensors:
            return None
        op, target, spelled = spell(func, name, recorded[0], recorded[1])
        node = self._node(op, target, spelled, recorded[1])
        changes = self._changed_by(node)
        if result is None:
            return None
        if isinstance(result, tuple | list):
            node.meta["length"] = len(result)
        if changes:
            node.meta["line"] = where()
        return self._results(result, node, again=args[0] if changes and args else None)

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        return func(*self._converted(args), **self._converted(kwargs))

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
        if name == "mT":
            return self._call(torch.transpose, "transpose", (tensor, -2, -1), {})
        node = self._mark(tensor)
        if name == "shape" and node is not None:
            return self._shape(tensor, node)
        if name in _DEVICE:
            self.asks_form.add(self.stack[-1])
            answer = self._device_answer(func, name, tensor)
            if name == "device":
                self._note_kind(name, answer, tensor, node)
            return answer
        value = func(self._twin(tensor) if name == "dtype" and self.elsewhere else tensor)
        self._note_question(name, value, node)
        if name in _DIFFERING and node is not None:
            return self._differing(name, value)
        if name == "dtype":
            self._note_kind(name, value, tensor, node)
        if isinstance(value, Tensor) and self._is_followed(tensor):
            return self._results(
                value, self._node("call_function", getattr, (self._as_node(tensor), name), {})
            )
        return value

    def _note_question(self, name: str, value: Any, node: fx.Node | None) -> None:
        if name == "ndim" and node is not None:
            self.asks_rank.add(self.stack[-1])
        if name == "nbytes" and node is not None:
            self.loses_size.add(self.stack[-1])
        if name != "ndim" and not isinstance(value, Tensor):
            self.asks_form.add(self.stack[-1])

    def _differing(self, name: str, value: Any) -> Any:
        """Answer what depends on whether gradients are recorded, or on what came before."""
        if name == "_version":
            return self.ask_around(name, value, None)
        if name in ("grad_fn", "grad"):
            return None if self.ask(name, value is None) else value or object()
        return self.ask(name, value)

    def _note_kind(self, name: str, value: Any, tensor: Tensor, node: fx.Node | None) -> None:
        """Note that code has read a dtype or a device off a value, or off a stored tensor.

        A fold may take the stored one away: an empty tensor that moves with the model tells it.
        """
        kinds = self._kinds.setdefault(self.stack[-1], [])
        path = self._stored_paths.get(id(tensor))
        if node is None and path is not None:
            self.stack[-1].asks.add(path)
            known = (of for read, one, of in kinds if (read, one) == (name, value))
            node = next(known, None) or self._stored_node(_kind_alone(tensor))
        if node is not None:
            kinds.append((name, value, node))

    def _device_answer(self, func: Any, name: str, tensor: Tensor) -> Any:
        """Tell the device of the model, not that of tensors without storage."""
        moves = tensor.is_meta or (self.elsewhere and id(tensor) in self._stored_paths)
        if not moves or self.device is None:
            return func(tensor)
        if name == "device":
            return self.device
        return self.device.type == name.removeprefix("is_")

    def _shape(self, tensor: Tensor, node: fx.Node) -> torch.Size:
        if node in self._static:
            return tensor.shape
        self.gives_size.add(self.stack[-1])
        found = enumerate(tensor.shape)
        return torch.Size([Size(n, (Tensor.size, node, i), self) for i, n in found])

    def _asked(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Answer a question about a value; how it lies in memory is another matter next time."""
        answer = self._run(func, args, kwargs)
        self.asks_form.add(self.stack[-1])
        node = self._mark(args[0]) if args else None
        if node is None or node in self._static:
            return answer
        if name in ("is_contiguous", "is_inference"):
            return self.ask(f"{name}()", answer)
        if name == "stride":
            if isinstance(answer, int):
                return Size(answer, (Tensor.stride, node, *args[1:], *kwargs.values()), self)
            return tuple(Size(n, (Tensor.stride, node, i), self) for i, n in enumerate(answer))
        return answer

    def _size(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        value = func(*map_tree(plain, args), **kwargs)
        node = self._mark(args[0])
        if node is None or node in self._static:
            return value
        if name in ("dim", "ndimension"):
            self.asks_rank.add(self.stack[-1])
            return value
        self.gives_size.add(self.stack[-1])
        if isinstance(value, torch.Size):
            return self._shape(args[0], node)
        if name == "size":
            return Size(value, (Tensor.size, node, *args[1:], *kwargs.values()), self)
        if name == "__len__":
            self.loses_size.add(self.stack[-1])
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
        """Answer code that asks for numbers: from stored tensors and sizes, in a real run, or not.

        An answer that sizes decide is a decision like a comparison of sizes.
        """
        tensors = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        marks = [self._mark(tensor) for tensor in tensors]
        if all(mark is None for mark in marks):
            if all(not tensor.is_meta for tensor in tensors):
                for tensor in tensors:
                    if id(tensor) in self._stored_paths:
                        self._note_read(tensor)
                return func(*map_tree(plain, args), **kwargs)
        else:
            self._sized = False
            known = map_tree(self._known_value, (args, kwargs))
            is_known = not any(leaf is _UNKNOWN for leaf in leaves(known))
            if is_known and (not self._sized or name in _SINGLE):
                return self._answered(func(*known[0], **known[1]))
        frame = self.stack[-1]
        reason = f"its code asks for numbers that depend on the input ({where()})"
        if not self.real:
            self.unanswered = self.unanswered or reason
            raise UnansweredError(reason)
        self._leave(frame, reason)
        self.asks.setdefault(frame.path, reason)
        result = self._run(func, args, kwargs)
        for leaf in leaves(result):
            if isinstance(leaf, Tensor):
                setattr(leaf, MARK, (self, None))
        return result

    def _answered(self, answer: Any) -> Any:
        """Return an answer; where the sizes of inputs have decided it, note that they do."""
        if not self._sized:
            return answer
        if isinstance(answer, bool):
            return self.decide(answer, by_values=True)
        self.lose()
        return answer

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
        """Return the value of a node that only stored tensors, and sizes of others, make."""
        if node.op == "get_attr":
            tensor = stored_value(node)
            if isinstance(tensor, Tensor):
                self._note_read(tensor)
            return tensor
        if node.op not in ("call_function", "call_method") or not node.all_input_nodes:
            return _UNKNOWN
        if node.op == "call_method" and node.target in ("size", "numel"):
            return self._evaluated_size(node)
        if node.target is getattr and node.args[1] in ("dtype", "device"):
            return self._evaluated_kind(node)
        if _INPUT_DEPENDENT in node.meta or mutated(node) or str(node.target) in RANDOM:
            return _UNKNOWN
        args, kwargs = map_tree(self._evaluated, (node.args, dict(node.kwargs)))
        if any(leaf is _UNKNOWN for leaf in leaves((args, kwargs))):
            node.meta[_INPUT_DEPENDENT] = True  # asked once: paths through a graph are many
            return _UNKNOWN
        with torch.no_grad():
            if node.op == "call_method":
                return getattr(args[0], cast(str, node.target))(*args[1:], **kwargs)
            return cast(Any, node.target)(*args, **kwargs)

    def _evaluated_size(self, node: fx.Node) -> int:
        self._sized = True
        shape = self.shapes[cast(fx.Node, node.args[0])]
        return prod(shape) if node.target == "numel" else shape[cast(int, node.args[1])]

    def _evaluated_kind(self, node: fx.Node) -> Any:
        """Return a type or a device that code has read off a tensor."""
        read = (node.args[1], node.args[0])
        known = (kind for kinds in self._kinds.values() for kind in kinds)
        return next((value for name, value, of in known if (name, of) == read), _UNKNOWN)

    def _evaluated(self, leaf: Any) -> Any:
        return self._evaluate(leaf) if isinstance(leaf, fx.Node) else leaf


_UNKNOWN = object()
_SINGLE = frozenset({"__bool__", "__int__", "__float__", "__index__", "item"})
_INPUT_DEPENDENT = "input dependent"
_DIFFERING = frozenset({"requires_grad", "is_leaf", "grad_fn", "grad", "_version", "retains_grad"})
_DEVICE = frozenset({"device", "is_cuda", "is_cpu", "is_mps", "is_xpu", "is_meta"})


def _writes(name: str, kwargs: dict[str, Any]) -> bool:
    inplace = name.endswith("_") and not name.endswith("__")
    return inplace or name == "__setitem__" or name.startswith("__i") or "out" in kwargs


def _kind_alone(tensor: Tensor) -> Tensor:
    """Return an empty tensor of the same dtype on the same device."""
    return tensor.detach().new_empty(0)


def _cloned(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
