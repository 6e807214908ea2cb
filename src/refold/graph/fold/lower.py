"""Lower: an operator as a torch.nn module, rounded once to the model's own precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from refold.algebra.operator import Affine, AvgPool, Conv, Identity, Operator, Pad, Resample, Select
from refold.engine.outside import outside
from refold.errors import NotAffineError, RefusedError
from refold.graph.copies.skeleton import copy_module
from refold.graph.layers import Crop, Cropped, ScaleShift, SelectChannels
from refold.ranked import CONVS, POOLS, SCATTERS


@dataclass(frozen=True)
class Like:
    """What new tensors take over from those they replace.

    Args:
        dtype: precision of the model at this place.
        device: where its tensors live.
        memory_format: layout of the weights, as `torch.channels_last`.
        requires_grad: whether any of the replaced parameters is trained.
        rank: spatial axes of the value.
        storages: where the replaced tensors lie; what still lies there is copied.
    """

    dtype: torch.dtype
    device: torch.device
    memory_format: torch.memory_format = torch.contiguous_format
    requires_grad: bool = True
    rank: int = 2
    storages: frozenset[int] = frozenset()


NEW_CONV = "reparam_conv"
"""What a new convolution is called where its block gives no other name."""

_NAMES: dict[type[Operator], str] = {
    Conv: NEW_CONV,
    Affine: "reparam_scale",
    AvgPool: "reparam_pool",
    Pad: "reparam_pad",
    Select: "reparam_select",
}


def name_of_new(op: Operator) -> str:
    """Return what a layer that takes no old one's place is called, unless its block says so.

    Examples:
        >>> name_of_new(Affine(torch.ones(2)))
        'reparam_scale'
    """
    return _NAMES.get(type(op), "reparam_layer")


def lower(op: Operator, like: Like) -> nn.Module:
    """Return a module that computes `op`.

    Raises:
        RefusedError: when a value does not fit the model's precision, or is not finite.
        NotAffineError: when the operator has no module.
    """
    if isinstance(op, Conv):
        return _lower_linear(op, like) if not op.axes else _lower_conv(op, like)
    if isinstance(op, Affine):
        scale, shift = _round(op.scale, like, "scale"), _round(op.shift, like, "shift")
        return _trained(ScaleShift(scale, shift, like.rank), like)
    if isinstance(op, AvgPool):
        return _lower_pool(op)
    if isinstance(op, Pad):
        return Crop(op.amounts, op.mode, op.value)
    if isinstance(op, Select):
        return SelectChannels(op.index, like.rank).to(like.device)
    if isinstance(op, Identity):
        return nn.Identity()
    raise NotAffineError(f"{type(op).__name__} has no module of its own")


def as_call(op: Operator) -> tuple[Callable[..., Tensor], dict[str, Any]] | None:
    """Return the function of torch that moves positions as `op` does, and its arguments.

    Examples:
        >>> from functools import partial
        >>> from refold.algebra.operator import Resample
        >>> as_call(Resample(partial(torch.flatten, start_dim=-2), 1))[1]
        {'start_dim': -2}
    """
    function = op.function if isinstance(op, Resample) else None
    if not isinstance(function, partial) or function.args:
        return None
    return function.func, function.keywords


def _lower_conv(op: Conv, like: Like) -> nn.Module:
    if op.transposed:
        return _lower_transposed(op, like)
    even = all(axis.lo == axis.hi >= 0 for axis in op.axes)
    inner = op if even else replace(op, axes=tuple(replace(a, lo=0, hi=0) for a in op.axes))
    module = _empty(
        CONVS[len(op.axes)], op, like,
        padding=tuple(axis.lo for axis in inner.axes),
        padding_mode=op.mode if even else "zeros",
    )  # fmt: skip
    if even:
        return module
    return Cropped(Crop(tuple((a.lo, a.hi) for a in op.axes), op.mode), module)


def _lower_transposed(op: Conv, like: Like) -> nn.Module:
    extra = tuple(axis.lo - axis.hi for axis in op.axes)
    fits = all(
        axis.lo >= 0 and 0 <= more < max(axis.stride, axis.dilation)
        for axis, more in zip(op.axes, extra, strict=True)
    )
    if not fits:
        more = tuple(max(0, -axis.hi) for axis in op.axes)
        bare = replace(
            op, axes=tuple(replace(a, lo=0, hi=-e) for a, e in zip(op.axes, more, strict=True))
        )
        crop = Crop(tuple((-a.lo, -a.hi - e) for a, e in zip(op.axes, more, strict=True)))
        grows = any(e >= max(a.stride, a.dilation) for a, e in zip(op.axes, more, strict=True))
        if grows or any(axis.lo < 0 for axis in op.axes):
            raise RefusedError(
                "the merged transposed convolution needs output padding that torch does not have"
            )
        return Cropped(_lower_transposed(bare, like), crop)
    padding = tuple(axis.lo for axis in op.axes)
    return _empty(SCATTERS[len(op.axes)], op, like, padding=padding, output_padding=extra)


def _empty(cls: Any, op: Conv, like: Like, **options: Any) -> nn.Module:
    """Return a layer of this class around the operator's own tensors."""
    options |= {
        "stride": tuple(a.stride for a in op.axes), "dilation": tuple(a.dilation for a in op.axes),
        "groups": op.groups, "bias": op.bias is not None,
    }  # fmt: skip
    shape = op.in_channels, op.out_channels, tuple(op.weight.shape[2:])
    return _filled(_layer(cls, *shape, **options), op, like)


def _layer(cls: Any, *shape: Any, **options: Any) -> nn.Module:
    """Return a layer without weights; drawing some, even without storage, takes a while."""
    model = _model_of(cls, *shape, **options)
    return copy_module(model, {id(tensor): tensor for tensor in model._parameters.values()})


@lru_cache(maxsize=256)
def _model_of(cls: Any, *shape: Any, **options: Any) -> nn.Module:
    return cls(*shape, device="meta", **options)


def _lower_linear(op: Conv, like: Like) -> nn.Module:
    if op.groups > 1:
        raise RefusedError("a grouped linear layer has no torch module")
    module = _layer(nn.Linear, op.in_channels, op.out_channels, op.bias is not None)
    return _filled(module, op, like)


def _filled(module: nn.Module, op: Conv, like: Like) -> nn.Module:
    weight = _round(op.weight, like, "weight")
    assert weight is not None
    if weight.ndim in (4, 5) and like.memory_format is not torch.contiguous_format:
        weight = weight.contiguous(memory_format=like.memory_format)
    bias = _round(op.bias, like, "bias")
    module.register_parameter("weight", nn.Parameter(outside(weight)))
    module.register_parameter("bias", None if bias is None else nn.Parameter(bias))
    return _trained(module, like)


def _trained(module: nn.Module, like: Like) -> nn.Module:
    return module.requires_grad_(like.requires_grad)


def _round(tensor: Tensor | None, like: Like, name: str) -> Tensor | None:
    """Return the tensor in the model's precision, refusing what does not fit it."""
    if tensor is None:
        return None
    wide = tensor.detach()
    if wide.device.type == "meta":
        return torch.empty_like(wide, dtype=like.dtype)
    shared = wide.untyped_storage().data_ptr() in like.storages
    rounded = wide.to(device=like.device, dtype=like.dtype, copy=shared).contiguous()
    if not all(isfinite(end.item()) for end in torch.aminmax(rounded)):
        raise RefusedError(_misfit(wide, like, name))
    return rounded


def _misfit(tensor: Tensor, like: Like, name: str) -> str:
    largest = tensor.abs().max().item()
    if not isfinite(largest):
        return f"the folded {name} is not finite: a norm's variance or a weight is NaN or infinite"
    limit = torch.finfo(like.dtype).max
    return (
        f"the folded {name} reaches {largest:.4g}, beyond the largest {like.dtype} {limit:.4g}; "
        "fold in float32 or keep this norm"
    )


def _lower_pool(op: AvgPool) -> nn.Module:
    rank = len(op.axes)
    padding = tuple(axis.lo for axis in op.axes)
    even = all(
        axis.lo == axis.hi and 0 <= axis.lo <= axis.kernel // 2 and axis.dilation == 1
        for axis in op.axes
    )
    options: dict[str, Any] = {} if rank == 1 else {"divisor_override": op.divisor}
    kernel, stride = tuple(a.kernel for a in op.axes), tuple(a.stride for a in op.axes)
    if rank == 1 and op.divisor is not None:
        raise NotAffineError("AvgPool1d has no divisor")
    if even:
        return POOLS[rank](kernel, stride, padding, **options)
    crop = Crop(tuple((a.lo, a.hi) for a in op.axes))
    return Cropped(crop, POOLS[rank](kernel, stride, **options))


def like_of(tensors: list[Tensor], rank: int) -> Like:
    """Return what new tensors take over from those they replace: mostly the largest one's."""
    floats = [t for t in tensors if t.is_floating_point()]
    lead = max(floats, key=lambda t: (t.numel(), t.itemsize)) if floats else torch.empty(0)
    others = {4: torch.channels_last, 5: torch.channels_last_3d}
    layout = others.get(lead.ndim, torch.contiguous_format)
    if lead.is_contiguous() or not lead.is_contiguous(memory_format=layout):
        layout = torch.contiguous_format
    trained = any(t.requires_grad for t in floats)
    storages = frozenset(t.untyped_storage().data_ptr() for t in tensors)
    return Like(lead.dtype, lead.device, layout, trained, rank, storages)
