"""What a call gives, told from its arguments: to run it without storage takes far longer.

Only what is certain is told: a result of the same type, on the same device, laid out alike. What
would fail, or is unusual in any way, is run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import floor
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from refold.algebra.shapes import Shape, averaged, pooled
from refold.graph.trace.frames import map_tree
from refold.graph.trace.leaves import has_hooks
from refold.graph.trace.overridden import layer_class
from refold.graph.trace.recorder.sizes import plain


def result_of_layer(module: nn.Module, args: tuple[Any, ...], dtype: torch.dtype) -> Tensor | None:
    """Return what a layer gives, without storage, where that is plain to see.

    Args:
        module: the layer.
        args: what it is given.
        dtype: the type that its weights are taken to have.

    Examples:
        >>> x = torch.empty(1, 3, 8, 8, device="meta")
        >>> result_of_layer(nn.Conv2d(3, 4, 3, stride=2), (x,), torch.float32).shape
        torch.Size([1, 4, 3, 3])
    """
    if len(args) != 1 or not isinstance(args[0], Tensor) or has_hooks(module):
        return None
    value, kind = args[0], layer_class(module)
    if not value.is_floating_point():
        return None
    if kind in _ELEMENTWISE:
        return value if getattr(module, "inplace", False) else value.detach()
    if kind in _ROW_NORMS:
        return _after_row_norm(value, module, dtype)
    if kind is nn.AdaptiveAvgPool2d:
        return _of_shape(pooled(value.shape, module.output_size), value)
    if kind in _NORMS:
        fixed = not module.training and module._buffers.get("running_mean") is not None
        return value.detach() if fixed else None
    if kind not in _WEIGHED or not value.is_meta or value.dtype != dtype:
        return None
    weight = cast("Tensor | None", module._parameters.get("weight"))
    if weight is None or not (value.is_contiguous() and weight.is_contiguous()):
        return None
    sizes = _after_linear(value, weight) if kind is nn.Linear else _after_conv(value, module)
    return None if sizes is None else torch.empty(sizes, dtype=dtype, device="meta")


def _after_row_norm(value: Tensor, module: Any, dtype: torch.dtype) -> Tensor | None:
    """Tell what a norm over rows or groups gives: rows that lie one after the other."""
    if isinstance(module, nn.GroupNorm):
        fits = value.ndim > 1 and value.shape[1] == module.num_channels and value.is_contiguous()
    else:
        rows = tuple(module.normalized_shape)
        fits = tuple(value.shape[-len(rows) :]) == rows
    if not fits or not value.is_meta or value.dtype != dtype:
        return None
    return torch.empty(value.shape, dtype=dtype, device="meta")


def _after_linear(value: Tensor, weight: Tensor) -> list[int] | None:
    sizes = list(value.shape)
    return [*sizes[:-1], weight.shape[0]] if sizes[-1:] == [weight.shape[1]] else None


def _after_conv(value: Tensor, module: Any) -> list[int] | None:
    weight: Tensor = module.weight
    _, inputs, *kernel = weight.shape
    batch, channels, *sizes = [*value.shape, *([0] * (2 - min(value.ndim, 2)))]
    padding: Any = module.padding
    is_plain = module.padding_mode == "zeros" and isinstance(padding, tuple)
    if not is_plain or len(sizes) != len(kernel) or channels != inputs * module.groups:
        return None
    after = _windows(sizes, kernel, module.stride, padding, module.dilation)
    return [batch, weight.shape[0], *after] if min(after) > 0 else None


def _windows(sizes: Any, kernel: Any, stride: Any, padding: Any, dilation: Any) -> list[int]:
    """Return how many windows fit each axis."""
    axes = zip(sizes, kernel, stride, padding, dilation, strict=True)
    return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes]


def result_of_call(
    func: Any,
    args: Any,
    kwargs: Any,
    flat: list[Any],
    type_of: Callable[[Tensor], torch.dtype] = lambda tensor: tensor.dtype,
) -> Tensor | None:
    """Return what a function gives where the form of that is sure.

    Args:
        func: the function.
        args: its arguments.
        kwargs: those by name.
        flat: the leaves of both.
        type_of: the type that a stored tensor is taken to have.

    Examples:
        >>> x = torch.empty(2, 3, device="meta")
        >>> result_of_call(torch.tanh, (x,), {}, [x]).shape
        torch.Size([2, 3])
        >>> result_of_call(torch.sum, (x,), {}, [x]) is None
        True
    """
    tensors = [leaf for leaf in flat if isinstance(leaf, Tensor)]
    first = tensors[0] if tensors else None
    if first is None or flat[0] is not first or not first.is_floating_point():
        return None
    name = getattr(func, "__name__", "")
    if name in _IN_PLACE or (kwargs.get("inplace") is True and name in _OF_ONE):
        return first if len(tensors) == 1 else None
    if name in _SHAPES and all(_is_plain(tensor, first) for tensor in tensors):
        return _of_shape(_SHAPES[name](*map_tree(plain, args), **map_tree(plain, kwargs)), first)
    if func is functional.scaled_dot_product_attention:
        return _of_attention(*map_tree(plain, args), **map_tree(plain, kwargs))
    if any(leaf is True for leaf in flat):  # `training=True`
        return None
    if func in _NORM_CALLS:
        return _NORM_CALLS[func](tensors, args, kwargs, type_of)
    if name in _OF_ONE:
        is_same = len(tensors) == 1
    elif len(tensors) == 2:
        return _of_two(name, first, tensors[1], type_of)
    else:
        is_scaled = first.is_meta and len(flat) == 2 and isinstance(flat[1], int | float)
        is_same = name in _OF_TWO and is_scaled
    return first.detach() if is_same else None


def _of_two(
    name: str, first: Tensor, second: Tensor, type_of: Callable[[Tensor], torch.dtype]
) -> Tensor | None:
    """Tell what arithmetic with two tensors of one type gives, one of which spreads over both."""
    kind = second.dtype if second.is_meta else type_of(second)
    if not first.is_meta or kind != first.dtype:
        return None
    if _spreads_over(second.shape, first.shape):
        if name in _IN_PLACE_OF_TWO:
            return first
        return first.detach() if name in _OF_TWO else None
    is_larger = second.is_meta and _spreads_over(first.shape, second.shape)
    both_plain = first.is_contiguous() and second.is_contiguous()
    return second.detach() if name in _OF_TWO and is_larger and both_plain else None


def _is_plain(value: Tensor, first: Tensor) -> bool:
    return value.is_meta and value.dtype == first.dtype and value.is_contiguous()


def _of_shape(shape: Sequence[int] | None, like: Tensor) -> Tensor | None:
    if shape is None or not _is_plain(like, like):
        return None
    return torch.empty(shape, dtype=like.dtype, device="meta")


def _after_cat(tensors: Any, dim: int = 0, **others: Any) -> list[int] | None:
    shapes = [list(tensor.shape) for tensor in tensors]
    first, at = shapes[0], dim + len(shapes[0]) if dim < 0 else dim
    if others or not 0 <= at < len(first) or any(len(shape) != len(first) for shape in shapes):
        return None
    rest = {(*shape[:at], *shape[at + 1 :]) for shape in shapes}
    if len(rest) > 1:
        return None
    return [*first[:at], sum(shape[at] for shape in shapes), *first[at + 1 :]]


def _after_roll(value: Tensor, shifts: Any, dims: Any = None) -> list[int] | None:
    steps, axes = ([n] if isinstance(n, int) else list(n or ()) for n in (shifts, dims))
    fits = len(steps) == len(axes) and all(-value.ndim <= axis < value.ndim for axis in axes)
    return list(value.shape) if fits else None


def _after_softmax(value: Tensor, dim: Any = None, *more: Any, **others: Any) -> list[int] | None:
    keeps_type = not more and others.get("dtype") is None
    is_axis = isinstance(dim, int) and -value.ndim <= dim < value.ndim
    return list(value.shape) if is_axis and keeps_type else None


def _after_mean(
    value: Tensor, dim: Any = None, keepdim: bool = False, **others: Any
) -> Shape | None:
    return None if others else averaged(value.shape, dim, keepdim)


def _after_interpolate(
    value: Tensor, size: Any = None, scale_factor: Any = None, *_: Any, **others: Any
) -> list[int] | None:
    sizes = list(value.shape[2:])
    if size is not None:
        after = [size] * len(sizes) if isinstance(size, int) else list(size)
    else:
        is_one = isinstance(scale_factor, int | float)
        factors = [scale_factor] * len(sizes) if is_one else list(scale_factor or ())
        after = [floor(n * f) for n, f in zip(sizes, factors, strict=False)]
    is_whole = len(after) == len(sizes) and all(type(n) is int and n > 0 for n in after)
    return [*value.shape[:2], *after] if is_whole and min(sizes, default=0) > 0 else None


def _after_adaptive_pool(value: Tensor, output_size: Any) -> Shape | None:
    return pooled(value.shape, output_size)


def _after_max_pool(
    value: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> list[int] | None:
    given = (kernel_size, stride or kernel_size, padding, dilation)
    return None if return_indices else _after_pool(value, given, ceil_mode)


def _after_avg_pool(
    value: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    *_: Any,
    **others: Any,
) -> list[int] | None:
    return _after_pool(value, (kernel_size, stride or kernel_size, padding, 1), ceil_mode)


def _after_pool(value: Tensor, given: tuple[Any, ...], ceil_mode: bool) -> list[int] | None:
    """Tell what windows (kernel, stride, padding, dilation) leave of a map."""
    pairs = [(item, item) if isinstance(item, int) else tuple(item) for item in given]
    if value.ndim != 4 or any(len(pair) != 2 for pair in pairs) or min(value.shape) < 1:
        return None
    kernel, stride, padding, dilation = pairs
    if min(*stride, *dilation) < 1 or any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        return None
    sizes = value.shape[2:]
    after = _windows(sizes, kernel, stride, padding, dilation)
    if ceil_mode:  # one more where it begins on the map and the others do not reach its end
        further = _windows([n + s - 1 for n, s in zip(sizes, stride, strict=True)], *pairs)
        starts = zip(sizes, further, stride, padding, strict=True)
        after = [m - ((m - 1) * s >= n + p) for n, m, s, p in starts]
    return [*value.shape[:2], *after] if min(after) > 0 else None


def _spreads_over(small: torch.Size, large: torch.Size) -> bool:
    """Say whether a tensor of one shape meets one of another without making it any larger."""
    if small == large:
        return True
    ends = large[len(large) - len(small) :]
    return len(small) <= len(large) and all(n in (1, m) for n, m in zip(small, ends, strict=True))


def _of_rows(
    tensors: list[Tensor], args: Any, kwargs: Any, type_of: Callable[[Tensor], torch.dtype]
) -> Tensor | None:
    """Tell what a norm over rows gives, as long as its weights: rows one after the other."""
    first, *stored = tensors
    rows = kwargs["normalized_shape"] if "normalized_shape" in kwargs else args[1]
    if not first.is_meta or not isinstance(rows, tuple | list):
        return None
    ends = first.shape[first.ndim - len(cast("list[Any]", rows)) :]
    fits = tuple(ends) == tuple(cast("list[Any]", rows))
    fits = fits and all(t.shape == ends and type_of(t) == first.dtype for t in stored)
    return torch.empty(first.shape, dtype=first.dtype, device="meta") if fits else None


def _of_groups(
    tensors: list[Tensor], args: Any, kwargs: Any, type_of: Callable[[Tensor], torch.dtype]
) -> Tensor | None:
    """Tell what a norm over groups gives, with one weight for each channel."""
    first, *stored = tensors
    groups = kwargs["num_groups"] if "num_groups" in kwargs else args[1]
    fits = _is_plain(first, first) and first.ndim > 1 and first.shape[1] % groups == 0
    own = all(t.shape == first.shape[1:2] and type_of(t) == first.dtype for t in stored)
    return first.detach() if fits and own else None


def _of_channels(
    tensors: list[Tensor], args: Any, kwargs: Any, type_of: Callable[[Tensor], torch.dtype]
) -> Tensor | None:
    """Tell what a norm with stored statistics gives, of as many channels as it has."""
    first, *stored = tensors
    statistics = kwargs.get("running_mean", args[1] if len(args) > 1 else None)
    fits = first.ndim > 1 and all(item.shape == first.shape[1:2] for item in stored)
    return first.detach() if statistics is not None and fits else None


def _of_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **others: Any,
) -> Tensor | None:
    """Tell what attention without a mask gives: rows one after the other, as wide as the values."""
    alike = all(t.is_meta and t.dtype == query.dtype for t in (query, key, value))
    if (
        not alike
        or attn_mask is not None
        or dropout_p
        or others.get("enable_gqa")
        or query.ndim < 2
    ):
        return None
    *outer, rows, width = query.shape
    items = key.shape[-2] if key.ndim > 1 else None
    fits = key.shape == (*outer, items, width) and value.shape[:-1] == (*outer, items)
    return query.new_empty((*outer, rows, value.shape[-1])) if fits else None


_NORM_CALLS: dict[Any, Callable[..., Tensor | None]] = {
    functional.layer_norm: _of_rows,
    functional.group_norm: _of_groups,
    functional.batch_norm: _of_channels,
}
_WEIGHED = frozenset({nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d})
_NORMS = frozenset({nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm})
_ROW_NORMS = frozenset({nn.LayerNorm, nn.GroupNorm})
_ELEMENTWISE = frozenset(
    {nn.Softsign, nn.CELU, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.LogSigmoid, nn.Threshold}
    | {nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Hardswish}
    | {nn.Hardsigmoid, nn.Hardtanh, nn.LeakyReLU, nn.ELU, nn.SELU, nn.Softplus, nn.Identity}
    | {nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d}
)
_OF_ONE = frozenset(
    {"relu", "relu6", "gelu", "silu", "mish", "sigmoid", "tanh", "hardswish", "hardsigmoid"}
    | {"hardtanh", "leaky_relu", "elu", "selu", "celu", "softplus", "softsign", "dropout"}
    | {"clamp", "hardshrink", "softshrink", "threshold"}
)
_IN_PLACE = frozenset({"relu_", "relu6_", "hardtanh_", "clamp_", "leaky_relu_", "elu_", "sigmoid_"})
_IN_PLACE_OF_TWO = frozenset({"add_", "sub_", "mul_", "__iadd__", "__isub__", "__imul__"})
_SHAPES: dict[str, Callable[..., Sequence[int] | None]] = {
    "cat": _after_cat,
    "concat": _after_cat,
    "mean": _after_mean,
    "roll": _after_roll,
    "softmax": _after_softmax,
    "interpolate": _after_interpolate,
    "adaptive_avg_pool2d": _after_adaptive_pool,
    "max_pool2d": _after_max_pool,
    "avg_pool2d": _after_avg_pool,
}
_OF_TWO = frozenset({"add", "sub", "mul", "__add__", "__sub__", "__mul__", "__radd__", "__rmul__"})
