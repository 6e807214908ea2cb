"""Proxies of the tracer: in-place operators stay in place, sizes are known where the graph tells.

Stored tensors know their shape, and `f(*x.shape)` knows how many axes `x` has.
"""

from __future__ import annotations

import dis
import operator
import sys
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import fx, nn
from torch.fx.proxy import Attribute

from refold.graph.calls import is_question_name, name_of
from refold.graph.copies.modules import submodule
from refold.graph.trace.genuine import layer_class

_NORMED: dict[type, int] = {
    nn.BatchNorm2d: 4,
    nn.BatchNorm3d: 5,
}
_KEEPING = ("torch.nn.modules.activation", "torch.nn.modules.dropout")


def parts_of_shape(node: fx.Node, root: nn.Module) -> int | None:
    """Return how many sizes `x.shape` or `x.size()` has, None for other values and where unknown.

    Examples:
        >>> net = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())
        >>> graph = fx.symbolic_trace(net).graph
        >>> with graph.inserting_before():
        ...     size = graph.call_method("size", (list(graph.nodes)[2],))
        >>> parts_of_shape(size, net)
        4
    """
    if node.op == "call_method" and node.target == "size" and len(node.args) == 1:
        return _axes_of(node.args[0], root)
    if node.op == "call_function" and node.target is getattr and node.args[1] == "shape":
        return _axes_of(node.args[0], root)
    return None


def _axes_of(value: object, root: nn.Module) -> int | None:
    """Return the axes of a value that a norm made, followed through layers that keep them."""
    while isinstance(value, fx.Node) and value.op == "call_module":
        module = submodule(root, str(value.target))
        kind = layer_class(module)
        if kind in _NORMED:
            return _NORMED[kind]
        if kind.__module__ not in _KEEPING and kind is not nn.Identity:
            return None
        value = value.args[0] if value.args else None
    return None


_READS = frozenset({"item", "tolist"})
_ASSIGNED = frozenset({"data", "grad", "requires_grad"})


class RefoldProxy(fx.Proxy):
    """A traced value; `y += x` is recorded as `operator.iadd`: the old name of `y` changes too.

    Args:
        node: the node that computes the value.
        tracer: the tracer that records.
        known: the stored tensor itself, when the value is a parameter or buffer: its shape, dtype
            and device are then plain values that control flow may read.
        readable: whether control flow may also read the stored numbers (buffers only).
    """

    def __init__(
        self,
        node: fx.Node,
        tracer: Any = None,
        known: torch.Tensor | None = None,
        readable: bool = False,
    ) -> None:
        super().__init__(node, tracer)
        self.__dict__["known"] = known
        self.__dict__["readable"] = readable

    def __getattr__(self, k: str) -> Any:
        known = cast("torch.Tensor | None", self.__dict__.get("known"))
        if known is not None:
            if is_question_name(k) or k == "requires_grad":
                return getattr(known, k)
            if k in _READS and self.__dict__["readable"]:
                self._note_read(known)
                return getattr(known, k)
        return RefoldAttribute(self, k)

    def _note_read(self, known: torch.Tensor) -> None:
        tracer: Any = self.tracer  # ours: it follows what control flow reads
        tracer.note_read(known)

    def __setattr__(self, k: str, value: Any) -> None:
        """Record `x.data = y`; other names are the proxy's own."""
        if k in _ASSIGNED:
            self.tracer.create_proxy("call_function", setattr, (self, k, value), {})
        else:
            object.__setattr__(self, k, value)

    def __bool__(self) -> bool:
        known = cast("torch.Tensor | None", self.__dict__.get("known"))
        if known is not None and self.__dict__["readable"]:
            self._note_read(known)
            return bool(known)
        if _is_assertion(sys._getframe(1)):  # pyright: ignore[reportPrivateUsage]
            return True
        return super().__bool__()

    def __iter__(self) -> Iterator[Any]:
        count = self._parts()
        if count is not None:
            return iter([cast(Any, self)[index] for index in range(count)])
        frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
        at = next(op for op in dis.get_instructions(frame.f_code) if op.offset == frame.f_lasti)
        if at.opname == "UNPACK_SEQUENCE":  # `a, b = x` says how many parts there are
            return iter([cast(Any, self)[index] for index in range(cast(int, at.argval))])
        return self.tracer.iter(self)

    def __len__(self) -> int:
        known = cast("torch.Tensor | None", self.__dict__.get("known"))
        if known is not None:
            return len(known)
        count = self._parts()
        return super().__len__() if count is None else count

    def _parts(self) -> int | None:
        found = _known_parts(self.node)
        root = getattr(self.tracer, "root", None)
        return found if found is not None or root is None else parts_of_shape(self.node, root)


class RefoldAttribute(Attribute, RefoldProxy):
    """An attribute of a traced value; a method call on it becomes one node."""

    def __init__(self, root: fx.Proxy, attr: str) -> None:
        self.__dict__.update(known=None, readable=False)
        Attribute.__init__(self, root, attr)


def _known_parts(node: fx.Node) -> int | None:
    """Return the number of parts of `x.chunk(2, 1)` and `x.split([a, b], 1)`, or None."""
    name = name_of(node)
    if name not in ("chunk", "split", "tensor_split", "split_with_sizes"):
        return None
    names = ("chunks", "split_size_or_sections", "split_size", "split_sizes", "indices_or_sections")
    given = [*node.args[1:2], *(node.kwargs[key] for key in names if key in node.kwargs)]
    parts = given[0] if given else None
    if isinstance(parts, list | tuple):
        return len(parts) + (name == "tensor_split")
    return parts if name in ("chunk", "tensor_split") and isinstance(parts, int) else None


def _recorder(target: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    def record(self: Any, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return record


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand"):
    setattr(RefoldProxy, f"__{_name}__", _recorder(getattr(operator, _name)))
for _name in ("ior", "ixor", "ilshift", "irshift"):
    setattr(RefoldProxy, f"__{_name}__", _recorder(getattr(operator, _name)))


def _setitem(self: Any, key: Any, value: Any) -> None:
    self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


RefoldProxy.__setitem__ = _setitem  # pyright: ignore[reportAttributeAccessIssue]


def _is_assertion(frame: Any) -> bool:
    """Say whether an `assert` asks for the truth value: a trace may take it as true."""
    instructions = list(dis.get_instructions(frame.f_code))
    at = next((i for i, op in enumerate(instructions) if op.offset == frame.f_lasti), None)
    if at is None:
        return False
    while at < len(instructions) and instructions[at].opname in ("TO_BOOL", "CACHE", "NOT_TAKEN"):
        at += 1
    jump = instructions[at] if at < len(instructions) else None
    if jump is None or not (jump.opname.startswith("POP_JUMP") and jump.opname.endswith("_TRUE")):
        return False
    after = next(
        (op for op in instructions[at + 1 :] if op.opname not in ("CACHE", "NOT_TAKEN")), None
    )
    return after is not None and (
        after.opname in ("LOAD_ASSERTION_ERROR", "LOAD_COMMON_CONSTANT")
        or (after.opname == "LOAD_GLOBAL" and after.argval == "AssertionError")
    )
