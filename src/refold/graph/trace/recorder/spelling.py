"""How a call that torch reports is written in a graph: as an operator, a method or a function."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

_OPERATORS: dict[str, Any] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "matmul": operator.matmul,
    "pow": operator.pow,
    "add_": operator.iadd,
    "sub_": operator.isub,
    "mul_": operator.imul,
    "div_": operator.itruediv,
    "gt": operator.gt,
    "ge": operator.ge,
    "lt": operator.lt,
    "le": operator.le,
    "ne": operator.ne,
    "__eq__": operator.eq,
    "eq": operator.eq,
    "__getitem__": operator.getitem,
    "__floordiv__": operator.floordiv,
    "__and__": operator.and_,
    "__or__": operator.or_,
    "pow_": operator.ipow,
}
_SWAPPED: dict[str, Any] = {
    "__rsub__": operator.sub,
    "__rdiv__": operator.truediv,
    "__rpow__": operator.pow,
    "__rfloordiv__": operator.floordiv,
    "__rmatmul__": operator.matmul,
}

Spelling = tuple[str, Any, tuple[Any, ...]]


def spell(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Spelling:
    """Return the kind of node, its target and its arguments for a call.

    Examples:
        >>> spell(Tensor.add, "add", (1, 2), {})
        ('call_function', <built-in function add>, (1, 2))
        >>> spell(Tensor.flatten, "flatten", (1, 2), {})
        ('call_method', 'flatten', (1, 2))
    """
    if not _is_method(func, name):
        return "call_function", func, args
    if not kwargs and len(args) == 2:
        if name in _OPERATORS:
            return "call_function", _OPERATORS[name], args
        if name in _SWAPPED:
            return "call_function", _SWAPPED[name], (args[1], args[0])
    if name == "__setitem__":
        return "call_function", operator.setitem, args
    if name == "neg" and len(args) == 1:
        return "call_function", operator.neg, args
    return "call_method", name, args


def _is_method(func: Any, name: str) -> bool:
    if getattr(Tensor, name, None) is func:
        return True
    if getattr(func, "__module__", None) == "torch._tensor" and hasattr(Tensor, name):
        return True  # an operator such as `x ** 2`, which torch wraps without a name of its own
    return getattr(func, "__objclass__", None) is torch._C.TensorBase


SIZES = frozenset({"size", "numel", "nelement", "dim", "ndimension", "__len__"})
QUESTIONS = frozenset(
    {
        "is_floating_point",
        "is_complex",
        "is_contiguous",
        "is_signed",
        "is_inference",
        "is_pinned",
        "is_shared",
        "is_same_size",
        "is_nested",
        "stride",
        "storage_offset",
        "get_device",
        "element_size",
        "data_ptr",
        "result_type",
        "can_cast",
        "is_tensor",
        "_is_view",
        "has_names",
        "__hash__",
        "__repr__",
        "__format__",
        "__str__",
        "is_storage",
    }
)
VALUES = frozenset(
    {
        "__bool__",
        "__int__",
        "__float__",
        "__complex__",
        "__index__",
        "__contains__",
        "__array__",
        "item",
        "tolist",
        "numpy",
        "nonzero",
        "argwhere",
        "unique",
        "unique_consecutive",
        "masked_select",
        "equal",
        "allclose",
        "is_nonzero",
        "bincount",
        "nms",
        "batched_nms",
        "where_nonzero",
    }
)
RANDOM = frozenset(
    {
        "rand",
        "rand_like",
        "randn",
        "randn_like",
        "randint",
        "randint_like",
        "randperm",
        "bernoulli",
        "bernoulli_",
        "normal",
        "normal_",
        "uniform_",
        "random_",
        "exponential_",
        "poisson",
        "multinomial",
        "empty",
        "empty_like",
        "new_empty",
    }
)
CHECKS = frozenset({"_assert", "_check", "_assert_async", "_functional_assert_async"})
