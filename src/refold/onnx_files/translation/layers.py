"""ONNX's layers in torch's words: convolutions, matrices, norms and pools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from refold.graph import Crop, Cropped, DepthToSpace
from refold.onnx_files.reading import DEFAULT, title
from refold.onnx_files.translation.network import Network, Opaque, UnreadError
from refold.ranked import CONVS, MAX_POOLS, POOLS, SCATTERS

Builder = Callable[[Network, Any, dict[str, Any]], fx.Node | None]
"""Returns the call that a node is, or None where it is opaque."""
Pairs = tuple[tuple[int, int], ...]
_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_MANY_AXES = "it has more than 3 spatial axes, or none"
_ADAPTIVE = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def _conv(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    weight, bias = _weights(network, node)
    if weight.ndim - 2 not in CONVS:
        raise UnreadError(_MANY_AXES)
    source, kernel = network.value(node.input[0]), tuple(weight.shape[2:])
    strides, dilations = _tuple(given, "strides", kernel), _tuple(given, "dilations", kernel)
    pads = pads_of(network, node, given, kernel)
    groups = int(given.get("group", 1))
    lead: fx.Node | None = None
    if pads is None:  # sizes that nobody knows decide: zeros around the map, and a bare layer
        lead = source = network.function(Opaque(f"the padding of {title(node)}"), (source,))
        lead.meta["place"] = title(node)
        pads = ((0, 0),) * len(kernel)
    even = all(lo == hi for lo, hi in pads)
    layer = CONVS[len(kernel)](
        weight.shape[1] * groups, weight.shape[0], kernel, strides,
        tuple(lo for lo, _ in pads) if even else 0, dilations, groups, bias is not None,
        device="meta",
    )  # fmt: skip
    _fill(layer, weight, bias)
    made = network.layer(layer if even else Cropped(Crop(pads), layer), source, node)
    if lead is not None:
        made.meta["lead"] = lead
    return made


def _conv_transpose(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    weight, bias = _weights(network, node)
    if weight.ndim - 2 not in SCATTERS:
        raise UnreadError(_MANY_AXES)
    kernel, groups = tuple(weight.shape[2:]), int(given.get("group", 1))
    strides, dilations = _tuple(given, "strides", kernel), _tuple(given, "dilations", kernel)
    extra = tuple(given.get("output_padding") or (0,) * len(kernel))
    if any(more >= max(s, d) for more, s, d in zip(extra, strides, dilations, strict=True)):
        raise UnreadError("its output_padding is not below its stride")
    pads = _cut_by(network, node, given, kernel)
    even = all(lo == hi for lo, hi in pads)
    layer = SCATTERS[len(kernel)](
        weight.shape[0], weight.shape[1] * groups, kernel, strides,
        tuple(lo for lo, _ in pads) if even else 0, extra, groups, bias is not None, dilations,
        device="meta",
    )  # fmt: skip
    _fill(layer, weight, bias)
    cut = Crop(tuple((-lo, -hi) for lo, hi in pads))
    module = layer if even else Cropped(layer, cut)
    return network.layer(module, network.value(node.input[0]), node)


def _cut_by(network: Network, node: Any, given: dict[str, Any], kernel: tuple[int, ...]) -> Pairs:
    """Return what a transposed convolution cuts off on each side.

    Raises:
        UnreadError: where a free size decides it, or nothing is cut but added.
    """
    mode, wanted = given.get("auto_pad", "NOTSET"), given.get("output_shape")
    if mode == "VALID":
        return ((0, 0),) * len(kernel)
    if mode == "NOTSET" and wanted is None:
        flat = tuple(given.get("pads") or (0,) * 2 * len(kernel))
        return tuple(zip(flat[: len(kernel)], flat[len(kernel) :], strict=True))
    strides, dilations = _tuple(given, "strides", kernel), _tuple(given, "dilations", kernel)
    extra = tuple(given.get("output_padding") or (0,) * len(kernel))
    sizes = (network.sizes.fixed(node.input[0]) or (None,) * (len(kernel) + 2))[2:]
    found: list[tuple[int, int]] = []
    for at, (size, k, s, d) in enumerate(zip(sizes, kernel, strides, dilations, strict=True)):
        if wanted is None:  # as many positions as the stride times those of the input
            total = d * (k - 1) + 1 - s + extra[at]
        elif size is None or len(wanted) != len(kernel):
            raise UnreadError("its output_shape makes a padding that depends on the input's size")
        else:
            total = (size - 1) * s + extra[at] + d * (k - 1) + 1 - wanted[at]
        if total < 0:
            raise UnreadError("its output is larger than its window and stride make it")
        less = total // 2
        found.append((less, total - less) if mode == "SAME_UPPER" else (total - less, less))
    return tuple(found)


def _computed(network: Network, node: Any) -> str:
    """Return why the weights of a node are no constants."""
    names = [name for name in node.input[1:] if name]
    graph = network.file.model.graph
    given = {value.name for value in graph.input}
    replaceable = given.intersection(tensor.name for tensor in graph.initializer)
    for name in names:
        if name in replaceable:
            return f"its weight {name!r} is also an input of the file, so a caller may replace it"
    computed = next((name for name in names if network.is_value(name)), None)
    if computed is None:
        return "its weights are of a type that nothing is folded in"
    return f"an input of the file decides its weight {computed!r}"


def _weights(network: Network, node: Any) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias.

    Raises:
        UnreadError: when one of them is no constant.
    """
    weight = network.constant(node.input[1])
    named = len(node.input) > 2 and bool(node.input[2])
    bias = network.constant(node.input[2]) if named else None
    fits = network.is_value(node.input[0]) and (bias is not None or not named)
    if weight is None or not fits:
        raise UnreadError(_computed(network, node))
    if bias is not None and not bool(bias.any()):
        bias = None  # exporters write zeros where there is none; at a border that matters
    return weight, bias


def _fill(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    layer.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
    held = None if bias is None else nn.Parameter(bias, requires_grad=False)
    layer.register_parameter("bias", held)


def _tuple(given: dict[str, Any], name: str, kernel: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(given.get(name) or (1,) * len(kernel))


def pads_of(
    network: Network, node: Any, given: dict[str, Any], kernel: tuple[int, ...]
) -> Pairs | None:
    """Return what a window adds on each side, None where a free size decides it."""
    mode = given.get("auto_pad", "NOTSET")
    if mode == "VALID":
        return ((0, 0),) * len(kernel)
    if mode == "NOTSET":
        flat = tuple(given.get("pads") or (0,) * 2 * len(kernel))
        return tuple(zip(flat[: len(kernel)], flat[len(kernel) :], strict=True))
    strides, dilations = _tuple(given, "strides", kernel), _tuple(given, "dilations", kernel)
    shape = network.sizes.fixed(node.input[0]) or (None,) * (len(kernel) + 2)
    found: list[tuple[int, int]] = []
    for size, k, s, d in zip(shape[2:], kernel, strides, dilations, strict=True):
        if size is None and s != 1:
            return None
        steps = 1 if size is None else (size + s - 1) // s
        total = max((steps - 1) * s + d * (k - 1) + 1 - (steps if size is None else size), 0)
        less = total // 2
        found.append((less, total - less) if mode == "SAME_UPPER" else (total - less, less))
    return tuple(found)


def _gemm(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    weight, bias = _weights(network, node)
    if given.get("transA"):
        raise UnreadError("it transposes its input first (transA)")
    weight = weight if given.get("transB") else weight.T
    beta = float(given.get("beta", 1.0))
    bias = _times(bias, beta) if bias is not None and beta else None
    weight = _times(weight, float(given.get("alpha", 1.0)))
    return _linear(network, node, weight, _row(bias, len(weight)))


def _times(tensor: Tensor, factor: float) -> Tensor:
    """Return a weight times a factor of its node.

    Raises:
        UnreadError: where the type of the weight has no such number.
    """
    made = (tensor.double() * factor).to(tensor.dtype)
    if not bool(torch.isfinite(made).all()):
        raise UnreadError("its alpha or beta takes a weight beyond the largest of its type")
    return made


def _row(bias: Tensor | None, width: int) -> Tensor | None:
    """Return a bias as one number per output."""
    if bias is None:
        return None
    flat = bias.reshape(-1) if bias.numel() in (1, width) and bias.shape[-1:] != (0,) else None
    if flat is None or (bias.ndim > 1 and bias.shape[-1] != bias.numel()):
        raise UnreadError("its bias differs from row to row")
    return flat.expand(width).contiguous()


def _linear(network: Network, node: Any, weight: Tensor, bias: Tensor | None) -> fx.Node:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    _fill(layer, weight, bias)
    return network.layer(layer, network.value(node.input[0]), node)


def _matmul(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    weight = network.constant(node.input[1])
    if weight is None or weight.ndim != 2 or not network.is_value(node.input[0]):
        return None
    return _linear(network, node, weight.T, None)


def starts_linear(network: Network, node: Any) -> bool:
    """Say whether a matrix product is one layer with the sum behind it, and note that if so."""
    if node.op_type != "MatMul" or node.domain not in DEFAULT:
        return False
    add, weight = network.only_reader(node.output[0]), network.constant(node.input[1])
    if weight is None or weight.ndim != 2 or not network.is_value(node.input[0]):
        return False
    if add is None or add.op_type != "Add" or add.domain not in DEFAULT or len(add.input) != 2:
        return False
    bias = network.constant(next((n for n in add.input if n != node.output[0]), ""))
    if bias is None or tuple(bias.shape) != (weight.shape[1],):
        return False
    network.merged[id(add)] = [node, add]
    return True


def biased_product(network: Network, product: Any, add: Any) -> fx.Node:
    """Build a matrix product and the sum behind it as one layer."""
    weight = network.constant(product.input[1])
    bias = network.constant(next(n for n in add.input if n != product.output[0]))
    assert weight is not None
    return _linear(network, product, weight.T, bias)


def _batch_norm(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    source = network.value(node.input[0])
    tensors = [network.constant(name) for name in node.input[1:5]]
    rank = network.rank(node.input[0]) or _rank_of(network, source)
    if given.get("training_mode", 0) or len([name for name in node.output if name]) > 1:
        raise UnreadError("it normalises with the batch, as in training")
    if not given.get("spatial", 1):
        raise UnreadError("it has statistics for every position (spatial=0)")
    if rank not in _NORMS:
        raise UnreadError("nobody knows how many axes its input has, or they are more than 5")
    scale, shift, mean, var = tensors
    if scale is None or shift is None or mean is None or var is None:
        raise UnreadError(_computed(network, node))
    layer: Any = _NORMS[rank](len(scale), eps=float(given.get("epsilon", 1e-5)), device="meta")
    _fill(layer, scale, shift)
    layer.running_mean, layer.running_var = mean, var
    return network.layer(layer, source, node)


def _rank_of(network: Network, source: fx.Node) -> int | None:
    """Return the axes of a value that the layer it comes from tells."""
    module = network.root._modules.get(str(source.target)) if source.op == "call_module" else None
    weight = getattr(module, "weight", None)
    is_conv = isinstance(module, (*CONVS.values(), *SCATTERS.values()))
    return weight.ndim if is_conv and isinstance(weight, Tensor) else None


def _average_pool(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    kernel = tuple(given["kernel_shape"])
    pads = pads_of(network, node, given, kernel)
    if pads is None or len(kernel) not in POOLS or given.get("ceil_mode"):
        return None
    if any(size != 1 for size in given.get("dilations", ())):
        return None
    strides, counts = _tuple(given, "strides", kernel), bool(given.get("count_include_pad"))
    fits = all(lo == hi <= k // 2 for (lo, hi), k in zip(pads, kernel, strict=True))
    if not fits and not counts:
        return None
    make: Any = POOLS[len(kernel)]
    if fits:
        pool = make(kernel, strides, tuple(lo for lo, _ in pads), count_include_pad=counts)
    else:
        pool = Cropped(Crop(pads), make(kernel, strides))
    return network.layer(pool, network.value(node.input[0]), node)


def _max_pool(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    kernel = tuple(given["kernel_shape"])
    pads = pads_of(network, node, given, kernel)
    if pads is None or len(kernel) not in MAX_POOLS or given.get("ceil_mode"):
        return None
    if any(lo != hi or lo > k // 2 for (lo, hi), k in zip(pads, kernel, strict=True)):
        return None
    strides, dilations = _tuple(given, "strides", kernel), _tuple(given, "dilations", kernel)
    pool = MAX_POOLS[len(kernel)](kernel, strides, tuple(lo for lo, _ in pads), dilations)
    return network.layer(pool, network.value(node.input[0]), node)


def _depth_to_space(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    if network.rank(node.input[0]) != 4:
        return None
    make = nn.PixelShuffle if given.get("mode", "DCR") == "CRD" else DepthToSpace
    return network.layer(make(int(given["blocksize"])), network.value(node.input[0]), node)


def _global_pool(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    rank = network.rank(node.input[0])
    if rank is None or rank - 2 not in _ADAPTIVE:
        return None
    return network.function(_ADAPTIVE[rank - 2], (network.value(node.input[0]), 1))


def _identity(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    """Build what hands a value on: in eval mode a dropout does nothing."""
    return network.layer(nn.Dropout(), network.value(node.input[0]), node)


def _dropout(network: Network, node: Any, given: dict[str, Any]) -> fx.Node | None:
    mask = len(node.output) > 1 and network.readers.get(node.output[1])
    trains = network.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    asked = len(node.input) > 2 and bool(node.input[2])
    off = not asked or (trains is not None and not bool(trains))
    if mask or not off or (len(node.output) > 1 and node.output[1] in network.outputs):
        return None
    return _identity(network, node, given)


LAYERS: dict[str, Builder] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_norm,
    "AveragePool": _average_pool,
    "MaxPool": _max_pool,
    "GlobalAveragePool": _global_pool,
    "DepthToSpace": _depth_to_space,
    "Identity": _identity,
    "Dropout": _dropout,
}
"""How each layer is built."""
