"""What to record a model on: arguments that were given, or some of our own."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from refold.errors import InputError
from refold.graph.calls import Kind, kind_of
from refold.graph.trace.leaves import is_layer
from refold.graph.trace.overridden import layer_class

_SIDES = (64, 224, 32, 28, 16, 8, 128, 256, 299, 384)
_STORED = 8  # stored tensors that are looked at for a number of channels
_OF_ANYTHING = ((2, 3, 64, 64), (2, 4, 8, 8), (2, 3, 64), (2, 8))


def as_arguments(example_inputs: Any) -> tuple[Any, ...] | None:
    """Return `example_inputs` as the tuple of a model's positional arguments.

    Raises:
        InputError: when it is neither a tensor nor a tuple or list.

    Examples:
        >>> as_arguments([1, 2])
        (1, 2)
    """
    if example_inputs is None:
        return None
    if isinstance(example_inputs, Tensor):
        return (example_inputs,)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(cast("tuple[Any, ...]", example_inputs))
    raise InputError(
        "example_inputs must be a tensor, or a tuple or list of arguments, "
        f"got {type(example_inputs).__name__}"
    )


def made_examples(model: nn.Module) -> Iterator[tuple[Any, ...]]:
    """Yield arguments that a model may accept, the likeliest first; none where nothing tells.

    Examples:
        >>> [x.shape for x in next(made_examples(nn.Linear(5, 2)))]
        [torch.Size([2, 5])]
    """
    exported = _exported(model)
    if exported is not None:
        yield exported
    if not _takes_one(model):
        return
    layer = next((m for m in model.modules() if _shapes(m)), model)
    dtype = next((p.dtype for p in layer.parameters()), torch.float32)
    seen = set[tuple[int, ...]]()
    for shape in (*_told(model), *_shapes(layer), *_stored(model, layer), *_OF_ANYTHING):
        if shape not in seen:
            seen.add(shape)
            yield (torch.empty(shape, dtype=dtype, device="meta"),)


def _exported(model: nn.Module) -> tuple[Any, ...] | None:
    """Return what an exported graph was exported with, where it says so."""
    if not isinstance(model, fx.GraphModule):
        return None
    given = [node.meta.get("val") for node in model.graph.nodes if node.op == "placeholder"]
    if not given or not all(isinstance(value, Tensor) for value in given):
        return None
    shapes = [tuple(int(size) for size in value.shape) for value in given]
    pairs = zip(shapes, given, strict=True)
    return tuple(torch.empty(shape, dtype=value.dtype, device="meta") for shape, value in pairs)


def is_spread(graph: fx.Graph, shapes: Mapping[fx.Node, tuple[int, ...]]) -> bool:
    """Say whether an input gains axes from stored tensors: then it stands for none that has them.

    Examples:
        >>> graph = fx.symbolic_trace(lambda x: x.relu() + torch.ones(1, 3, 1, 1)).graph
        >>> ranks = [2, 2, 4, 4]
        >>> is_spread(graph, {n: (1,) * k for n, k in zip(graph.nodes, ranks)})
        True
    """
    spreads = set(graph.find_nodes(op="placeholder"))
    for node in graph.nodes:
        read = [n for n in node.all_input_nodes if n in spreads and n in shapes]
        if read and kind_of(node) & (Kind.ELEMENTWISE | Kind.BROADCASTS):
            spreads.add(node)
            if len(shapes.get(node, ())) > max(len(shapes[n]) for n in read):
                return True
    return False


def drawn(value: Any) -> Any:
    """Return a tensor of random numbers, the same every time, in place of one without storage.

    Examples:
        >>> drawn(torch.empty(2, device="meta")).device
        device(type='cpu')
    """
    if not isinstance(value, Tensor):
        return value
    noise = torch.Generator().manual_seed(0)
    return torch.randn(value.shape, generator=noise, device="cpu").to(value.dtype)


def _takes_one(model: nn.Module) -> bool:
    """Say whether one tensor is enough to call a model with."""
    if type(model).forward is nn.Module.forward and "forward" not in model.__dict__:
        return False
    try:
        inspect.signature(model.forward).bind(None)
    except Exception:  # a ScriptModule, say, has no signature
        return False
    return True


def _told(model: nn.Module) -> Iterator[tuple[int, ...]]:
    """Yield the shapes that a model's own account gives: timm's and Hugging Face's."""
    known = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    size = known.get("input_size") if isinstance(known, Mapping) else None
    if isinstance(size, (tuple, list)):
        yield (2, *(int(n) for n in cast("tuple[int, ...]", size)))
    config = getattr(model, "config", None)
    channels = getattr(config, "num_channels", None)
    if isinstance(channels, int) and getattr(model, "main_input_name", "") == "pixel_values":
        side = getattr(config, "image_size", None) or 224
        sides = tuple(side) if isinstance(side, (tuple, list)) else (side, side)
        yield (2, channels, *sides)


def _shapes(layer: nn.Module) -> list[tuple[int, ...]]:
    """Return the shapes of what a layer may be given, the likeliest first."""
    if isinstance(layer, nn.LayerNorm):
        return [(2, *layer.normalized_shape), (2, 8, *layer.normalized_shape)]
    found = _channels(layer)
    if found is None:
        return []
    channels, ranks = found
    first = [(2, channels, *(s,) * rank) for rank in ranks for s in (_SIDES if rank else (0,))]
    last = [(2, *(_SIDES[0],) * (rank or 1), channels) for rank in ranks]
    return [*first, *last]


def _stored(model: nn.Module, layer: nn.Module) -> Iterator[tuple[int, ...]]:
    """Yield shapes that fit stored tensors of one number per channel, such as (1, C, 1, 1).

    A shape with fewer axes would run as well, since such a tensor adds those that are missing.
    """
    owners = (m for m in model.modules() if not (_shapes(m) or is_layer(m)))
    own = [t for m in owners for t in (*m.parameters(False), *m.buffers(False)) if t.numel() > 1]
    known = _channels(layer)
    for tensor in [t for t in own if t.numel() == max(t.shape)][:_STORED]:
        after = tensor.ndim - 1 - tuple(tensor.shape).index(tensor.numel())
        ranks = (after,) if after else known[1] if known else (2, 1, 0)
        for rank in ranks:
            yield from ((2, tensor.numel(), *(s,) * rank) for s in _SIDES[:3])


def _channels(layer: nn.Module) -> tuple[int, tuple[int, ...]] | None:
    """Return the channels that a layer takes, and how many spatial axes."""
    kind = layer_class(layer)
    if issubclass(kind, _ConvNd):
        conv = cast(_ConvNd, layer)
        return conv.in_channels, (len(conv.kernel_size),)
    if issubclass(kind, nn.Linear):
        return cast(nn.Linear, layer).in_features, (0,)
    if issubclass(kind, _NormBase):
        return cast(_NormBase, layer).num_features, _RANKS.get(kind, (2,))
    if issubclass(kind, nn.GroupNorm):
        return cast(nn.GroupNorm, layer).num_channels, (2, 1, 3)
    return None


_RANKS: dict[type, tuple[int, ...]] = {
    nn.BatchNorm1d: (0, 1),
    nn.BatchNorm3d: (3,),
    nn.InstanceNorm1d: (1,),
    nn.InstanceNorm3d: (3,),
}
