"""What torch.nn's layers are in the algebra; a subclass only while it computes the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import fx, nn

from refold.algebra.norm import norm_affine
from refold.algebra.operator import Affine, AvgPool, Conv, Pad, Resample, Select
from refold.graph.layers import Crop, Cropped, ScaleShift, SelectChannels
from refold.graph.lift.piece import Lifted, Piece, norm_piece, nothing, unary
from refold.graph.lift.windows import conv_axes, pool_axes, transposed_axes, tuple_of
from refold.graph.trace.overridden import disguise, layer_class

Shape = tuple[int, ...] | None
ModuleHandler = Callable[[Any, fx.Node, Shape], Lifted]


def lift_module(module: nn.Module, source: fx.Node, shape: Shape) -> Lifted:
    """Return the piece of a torch.nn layer, the reason why it has none, or None."""
    handler = _HANDLERS.get(layer_class(module))
    if handler is not None:
        return handler(module, source, shape)
    claims = any(cls in _HANDLERS for cls in type(module).__mro__)
    return disguise(module) if claims else None


def _conv(module: Any, source: fx.Node, shape: Shape) -> Lifted:
    kernel = tuple(module.kernel_size)
    axes = conv_axes(kernel, module.stride, module.padding, module.dilation)
    op = Conv(module.weight, module.bias, axes, module.groups, module.padding_mode)
    return unary(source, op, rank=len(kernel))


def _conv_transpose(module: Any, source: fx.Node, shape: Shape) -> Lifted:
    kernel = tuple(module.kernel_size)
    axes = transposed_axes(
        kernel, module.stride, module.padding, module.dilation, module.output_padding
    )
    op = Conv(module.weight, module.bias, axes, module.groups, transposed=True)
    return unary(source, op, rank=len(kernel))


def _linear(module: Any, source: fx.Node, shape: Shape) -> Lifted:
    return unary(source, Conv(module.weight, module.bias), rank=0)


def _norm(rank: int | None) -> ModuleHandler:
    def handle(module: Any, source: fx.Node, shape: Shape) -> Lifted:
        if module.training:
            return "the norm is in training mode; call model.eval()"
        if module.running_mean is None or module.running_var is None:
            return "the norm has no running statistics; it normalises with the batch"
        op = norm_affine(
            module.running_mean, module.running_var, module.weight, module.bias, module.eps
        )
        if rank is None:
            return norm_piece(source, op, shape)
        return unary(source, op, rank=rank, keeps_shape=True)

    return handle


def _instance_norm(rank: int) -> ModuleHandler:
    plain = _norm(rank)

    def handle(module: Any, source: fx.Node, shape: Shape) -> Lifted:
        return plain(module, source, shape) if module.track_running_stats else None

    return handle


def _avg_pool(rank: int) -> ModuleHandler:
    def handle(module: Any, source: fx.Node, shape: Shape) -> Lifted:
        if module.ceil_mode:
            return "ceil_mode makes border windows depend on the input's size"
        axes = pool_axes(rank, module.kernel_size, module.stride, module.padding)
        divisor = getattr(module, "divisor_override", None)
        if not module.count_include_pad and any(axis.pads for axis in axes) and divisor is None:
            strides = tuple(axis.stride for axis in axes)
            return unary(source, _mean_like(module, rank, strides), rank=rank)
        return unary(source, AvgPool(axes, divisor), rank=rank)

    return handle


def _mean_like(module: Any, rank: int, strides: tuple[int, ...]) -> Resample:
    density = 1.0
    for stride in strides:
        density /= stride
    return Resample(module, rank, density, rank)


def _adaptive_pool(rank: int) -> ModuleHandler:
    def handle(module: Any, source: fx.Node, shape: Shape) -> Lifted:
        return unary(source, Resample(module, rank, 0.0, rank), rank=rank)

    return handle


def _upsample(module: Any, source: fx.Node, shape: Shape) -> Lifted:
    factors = module.scale_factor
    if factors is not None and set(factors if isinstance(factors, tuple) else (factors,)) == {1}:
        return nothing(source)
    if shape is None:
        return None
    return unary(source, Resample(module, len(shape) - 2, 4.0, len(shape) - 2), rank=len(shape) - 2)


def _pad(mode: str, rank: int) -> ModuleHandler:
    def handle(module: Any, source: fx.Node, shape: Shape) -> Lifted:
        flat = tuple_of(module.padding, 2 * rank)
        pairs = tuple((flat[2 * i], flat[2 * i + 1]) for i in reversed(range(rank)))
        value = float(getattr(module, "value", 0.0)) if mode == "zeros" else 0.0
        return unary(source, Pad(pairs, mode, value), rank=rank)

    return handle


def _identity(module: Any, source: fx.Node, shape: Shape) -> Lifted:
    return nothing(source)


def _dropout(module: Any, source: fx.Node, shape: Shape) -> Lifted:
    if module.training and module.p > 0:
        return "dropout is in training mode; call model.eval()"
    return nothing(source)


def _nothing_at_one(name: str) -> ModuleHandler:
    """Return the handler of a layer that does nothing where this argument is 1."""

    def handle(module: Any, source: fx.Node, shape: Shape) -> Lifted:
        return nothing(source) if getattr(module, name) == 1 else None

    return handle


def _max_pool(module: Any, source: fx.Node, shape: Shape) -> Lifted:
    sizes = (*tuple_of(module.kernel_size, 1), *tuple_of(module.stride, 1))
    idle = set(sizes) == {1} and not any(tuple_of(module.padding, 1)) and not module.return_indices
    return nothing(source) if idle else None


def _cropped(module: Cropped, source: fx.Node, shape: Shape) -> Lifted:
    crop, layer = module.parts()
    inner = lift_module(layer, source, shape)
    if not isinstance(inner, Piece):
        return inner
    [op] = inner.ops
    assert isinstance(op, Conv | AvgPool)
    sign = -1 if isinstance(op, Conv) and op.transposed else 1
    pairs = zip(op.axes, crop.amounts, strict=True)
    axes = tuple(replace(a, lo=a.lo + sign * lo, hi=a.hi + sign * hi) for a, (lo, hi) in pairs)
    whole = (
        replace(op, axes=axes)
        if isinstance(op, AvgPool)
        else replace(op, axes=axes, mode=crop.mode)
    )
    return unary(source, whole, rank=len(axes))


def _scale_shift(module: ScaleShift, source: fx.Node, shape: Shape) -> Lifted:
    vectors = [v for v in (module.weight, module.bias) if v is not None and v.ndim]
    rank = module.rank if vectors else None  # a number fits any
    return unary(source, Affine(module.weight, module.bias), rank=rank, keeps_shape=True)


def _crop(module: Crop, source: fx.Node, shape: Shape) -> Lifted:
    return unary(source, Pad(module.amounts, module.mode, module.value), rank=len(module.amounts))


def _select(module: SelectChannels, source: fx.Node, shape: Shape) -> Lifted:
    if shape is None:
        return None
    index = tuple(int(i) for i in module.index.tolist())
    return unary(source, Select(index, shape[-1 - module.rank]), rank=module.rank)


_PADS: dict[str, str] = {
    "ZeroPad": "zeros",
    "ConstantPad": "zeros",
    "ReflectionPad": "reflect",
    "ReplicationPad": "replicate",
    "CircularPad": "circular",
}

_HANDLERS: dict[type, ModuleHandler] = {
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Conv3d: _conv,
    nn.ConvTranspose1d: _conv_transpose,
    nn.ConvTranspose2d: _conv_transpose,
    nn.ConvTranspose3d: _conv_transpose,
    nn.Linear: _linear,
    nn.BatchNorm1d: _norm(None),
    nn.BatchNorm2d: _norm(2),
    nn.BatchNorm3d: _norm(3),
    nn.SyncBatchNorm: _norm(None),
    Cropped: _cropped,
    ScaleShift: _scale_shift,
    Crop: _crop,
    SelectChannels: _select,
    nn.Upsample: _upsample,
    nn.Identity: _identity,
    **{getattr(nn, f"InstanceNorm{rank}d"): _instance_norm(rank) for rank in (1, 2, 3)},
    **{getattr(nn, f"AvgPool{rank}d"): _avg_pool(rank) for rank in (1, 2, 3)},
    **{getattr(nn, f"AdaptiveAvgPool{rank}d"): _adaptive_pool(rank) for rank in (1, 2, 3)},
    **{
        getattr(nn, f"{name}{rank}d"): _pad(mode, rank)
        for name, mode in _PADS.items()
        for rank in (1, 2, 3)
    },
    nn.FeatureAlphaDropout: _dropout,
    nn.PixelShuffle: _nothing_at_one("upscale_factor"),
    **{getattr(nn, f"MaxPool{rank}d"): _max_pool for rank in (1, 2, 3)},
    **dict.fromkeys(
        (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout), _dropout
    ),
}
