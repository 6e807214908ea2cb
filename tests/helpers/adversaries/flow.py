"""Networks whose code asks questions: of types, sizes, modes, values, itself."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.adversaries.base import Block, Norm, Table, Two, conv

FLOW = Table()
each = FLOW.forward


def either(s: Any, x: Any, first: object) -> Any:
    """Run one branch or the other."""
    return s.one(x) if first else s.two(x)


# -- what a value is

ASKS: dict[str, Any] = {
    "is_tensor": torch.is_tensor,
    "exact_type": lambda x: type(x) is Tensor,
    "class_name": lambda x: x.__class__.__name__ == "Tensor",
    "module_of_class": lambda x: type(x).__module__ == "torch",
    "not_parameter": lambda x: not isinstance(x, nn.Parameter),
    "not_mapping": lambda x: not isinstance(x, Mapping),
    "has_attribute": lambda x: hasattr(x, "tensors"),
    "getattr_default": lambda x: getattr(x, "mask", None) is None,
    "own_attributes": lambda x: not vars(x),
    "rank": lambda x: x.ndim == 4,
    "rank_by_len": lambda x: len(x.shape) == 4,
    "rank_in_table": lambda x: {3: False, 4: True}[x.dim()],
    "dtype": lambda x: x.dtype == torch.float64,
    "dtype_name": lambda x: str(x.dtype) == "torch.float64",
    "dtype_in": lambda x: x.dtype in (torch.float16, torch.bfloat16),
    "floating": lambda x: x.is_floating_point(),
    "half_by_finfo": lambda x: torch.finfo(x.dtype).eps < 1e-10,
    "element_size": lambda x: x.element_size() == 8,
    "device": lambda x: x.device.type == "cpu",
    "device_equal": lambda x: x.device == torch.device("cpu"),
    "device_text": lambda x: str(x.device) == "cpu",
    "cuda": lambda x: x.is_cuda,
    "meta": lambda x: x.is_meta,
    "layout": lambda x: x.layout == torch.strided,
    "sparse": lambda x: x.is_sparse,
    "contiguous": lambda x: x.is_contiguous(),
    "channels_last": lambda x: x.is_contiguous(memory_format=torch.channels_last),
    "stride": lambda x: x.stride(-1) == 1,
    "requires_grad": lambda x: x.requires_grad,
    "leaf": lambda x: x.is_leaf,
    "grad_fn": lambda x: x.grad_fn is None,
    "inference": lambda x: x.is_inference(),
    "version": lambda x: x._version == 0,
    "even_width": lambda x: x.shape[-1] % 2 == 0,
    "wide": lambda x: x.shape[3] > x.shape[2],
    "single": lambda x: len(x) == 1,
    "batch": lambda x: x.size(0) == 1,
    "batch_truth": lambda x: x.shape[0] - 1,
    "many": lambda x: x.numel() > 100,
    "area": lambda x: math.prod(x.shape[2:]) > 20,
    "biggest_side": lambda x: max(x.shape[2:]) > 6,
    "sorted_sides": lambda x: sorted(x.shape)[0] == 1,
    "side_in": lambda x: x.shape[-1] in (5, 8),
    "side_in_range": lambda x: x.shape[-1] in range(5),
    "shape_equal": lambda x: x.shape == (2, 3, 6, 5),
    "shape_tuple": lambda x: tuple(x.shape) == (2, 3, 6, 5),
    "shape_list": lambda x: list(x.shape) == [2, 3, 6, 5],
    "shape_text": lambda x: str(tuple(x.shape)) == "(2, 3, 6, 5)",
    "shape_format": lambda x: f"{x.shape[0]}x{x.shape[1]}" == "2x3",
    "shape_hash": lambda x: hash(tuple(x.shape)) == hash((2, 3, 6, 5)),
    "shape_numpy": lambda x: np.prod(np.array(x.shape)) > 200,
    "shape_tensor": lambda x: torch.tensor(x.shape).prod() > 200,
    "shape_sum_float": lambda x: math.sqrt(x.shape[2] * x.shape[3]) > 5.5,
    "shape_bits": lambda x: x.shape[-1] & (x.shape[-1] - 1) == 0,
    "shape_ceil": lambda x: math.ceil(x.shape[-1] / 4) == 2,
    "shape_log": lambda x: math.log2(x.shape[-1]) > 2.5,
    "shape_round": lambda x: round(x.shape[-1] / 4) == 1,
    "shape_divmod": lambda x: divmod(x.shape[-1], 4)[1] == 0,
    "shape_pow": lambda x: x.shape[-1] ** 2 > 30,
    "shape_negative": lambda x: -x.shape[-1] < -6,
    "shape_all": lambda x: all(side % 2 == 0 for side in x.shape[2:]),
    "shape_any": lambda x: any(side > 7 for side in x.shape),
    "shape_zip": lambda x: [a > b for a, b in zip(x.shape, (1, 2, 3, 6), strict=True)][3],
    "shape_digits": lambda x: len(str(x.numel())) == 3,
    "shape_min_of": lambda x: min(x.shape[-1], 6) == 6,
    "shape_as_float": lambda x: float(x.shape[0]) == 2.0,
    "shape_as_index": lambda x: [True, False, True, False][x.shape[0]],
    "shape_as_bool": lambda x: bool(x.shape[0] // 2),
    "shape_loop": lambda x: sum(1 for _ in range(x.shape[0])) == 2,
    "shape_while": lambda x: _halvings(x.shape[-1]) == 2,
    "unpacked": lambda x: (lambda b, c, h, w: h > w)(*x.shape),
    "values_sum": lambda x: x.sum() > 0,
    "values_any": lambda x: (x > 2.5).any(),
    "values_item": lambda x: x.flatten()[0].item() > 0,
    "values_int": lambda x: int(x[0, 0, 0, 0] * 10) % 2,
    "values_list": lambda x: x[0, 0, 0].tolist()[0] > 0,
    "values_equal": lambda x: torch.equal(x, x.abs()),
    "values_close": lambda x: torch.allclose(x, x * 1.0),
    "values_nonzero": lambda x: len((x > 2).nonzero()) % 2,
    "values_nan": lambda x: torch.isnan(x).any(),
    "values_numpy": lambda x: x.detach().numpy().max() > 2.5,
    "values_float": lambda x: float(x.mean()) > 0,
    "values_format": lambda x: f"{x.mean():.1f}".startswith("-"),
    "values_text": lambda x: "-" in str(x.flatten()[0]),
    "values_loop": lambda x: sum(bool(row.sum() > 0) for row in x) == 1,
    "values_index": lambda x: [0, 1, 0][x.flatten(1).argmax(1)[0] % 3],
    "values_in": lambda x: 0.0 in x,
    "values_max_pair": lambda x: x.flatten().max(0).indices > 20,
}


def _halvings(size: int) -> int:
    count = 0
    while size > 2:
        size, count = size // 2, count + 1
    return count


def _one_ask(name: str, ask: Any) -> None:
    def run(s: Any, x: Any) -> Any:
        return either(s, x, ask(x))

    run.__name__ = f"asks_{name}"
    each()(run)


for _name, _ask in ASKS.items():
    _one_ask(_name, _ask)


# -- where it runs


@each()
def grad_mode(s: Any, x: Any) -> Any:
    return either(s, x, torch.is_grad_enabled())


@each()
def tracing_flags(s: Any, x: Any) -> Any:
    flags = (torch.jit.is_tracing(), torch.jit.is_scripting(), torch.compiler.is_compiling())
    return either(
        s, x, any((*flags, torch.onnx.is_in_onnx_export(), torch._C._get_tracing_state()))
    )


@each()
def modes_of_torch(s: Any, x: Any) -> Any:
    depth = torch.overrides._get_current_function_mode_stack()
    return either(s, x, not depth)


@each()
def default_dtype(s: Any, x: Any) -> Any:
    return either(s, x, torch.get_default_dtype() == torch.float32)


@each()
def training_flag(s: Any, x: Any) -> Any:
    return either(s, x, s.training)


@each(lambda s: setattr(s, "mode", "second"))
def mode_in_text(s: Any, x: Any) -> Any:
    match s.mode:
        case "first":
            return s.one(x)
        case _:
            return s.two(x) * s.mode.count("e")


class Mode(enum.Enum):
    PLAIN = 1
    SCALED = 2


@each(lambda s: setattr(s, "mode", Mode.SCALED))
def mode_in_enum(s: Any, x: Any) -> Any:
    return s.branches(x) * s.mode.value


# -- what it is made of


@each()
def asks_kind_of_child(s: Any, x: Any) -> Any:
    y = s.one(x)
    return y if isinstance(s.b1, Norm) else y * 2


@each()
def asks_attribute_of_child(s: Any, x: Any) -> Any:
    return s.branches(x) * s.b1.num_features + (0 if hasattr(s.b2, "running_mean") else 1)


@each()
def asks_bias_of_child(s: Any, x: Any) -> Any:
    return s.branches(x) if s.c1.bias is not None else x


@each()
def counts_children(s: Any, x: Any) -> Any:
    return s.branches(x) * len(list(s.children()))


@each()
def counts_parameters(s: Any, x: Any) -> Any:
    return s.branches(x) * sum(p.numel() for p in s.parameters())


@each()
def reads_own_state(s: Any, x: Any) -> Any:
    return s.branches(x) + s.state_dict()["b1.running_mean"].sum()


@each()
def reads_own_text(s: Any, x: Any) -> Any:
    return s.branches(x) * repr(s).count("BatchNorm2d")


@each()
def regularizes(s: Any, x: Any) -> Any:
    return s.branches(x), sum(p.square().sum() for p in s.parameters())


@each()
def reads_dtype_of_a_weight(s: Any, x: Any) -> Any:
    return s.branches(x.to(s.c2.weight.dtype)).to(next(s.parameters()).device)


@each()
def asks_a_weight(s: Any, x: Any) -> Any:
    return either(s, x, s.b1.weight[0] > 0)


@each()
def loops_over_children(s: Any, x: Any) -> Any:
    y = 0
    for name, child in s.named_children():
        if name.startswith("c"):
            y = y + getattr(s, name.replace("c", "b"))(child(x))
    return y


@each()
def loops_over_kinds(s: Any, x: Any) -> Any:
    layers = [m for m in s.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in s.modules() if type(m).__name__.startswith("BatchNorm")]
    y = norms[0](layers[0](x)) if norms else x
    return y * len(norms)


@each(lambda s: setattr(s, "layers", nn.ModuleList([Block(), Block()])))
def layer_by_size(s: Any, x: Any) -> Any:
    return s.layers[x.shape[0] % 2](x)


@each(lambda s: setattr(s, "layers", nn.ModuleDict({"5": Block(), "8": Block(), "4": Block()})))
def layer_by_text_of_size(s: Any, x: Any) -> Any:
    return s.layers[str(x.shape[-1])](x)


@each(lambda s: setattr(s, "layers", nn.ModuleList([Block(4, 4) for _ in range(4)])))
def as_many_layers_as_images(s: Any, x: Any) -> Any:
    y = s.one(x)
    for layer in s.layers[: x.shape[0]]:
        y = layer(y)
    return y


@each()
def each_image_by_itself(s: Any, x: Any) -> Any:
    return torch.cat([s.branches(image[None]) for image in x])


@each()
def tiles(s: Any, x: Any) -> Any:
    half = x.shape[-1] // 2
    return torch.cat([s.one(x[..., :half]), s.one(x[..., half:])], -1)


@each()
def pads_to_a_multiple(s: Any, x: Any) -> Any:
    h, w = x.shape[-2:]
    y = s.branches(F.pad(x, (0, -w % 4, 0, -h % 4)))
    return y[..., :h, :w]


@each()
def resizes_to_the_input(s: Any, x: Any) -> Any:
    y = F.interpolate(s.branches(x), scale_factor=2)
    return F.interpolate(y, size=tuple(int(side) for side in x.shape[-2:]))


@each()
def recursion(s: Any, x: Any) -> Any:
    def down(y: Any, depth: int) -> Any:
        return y if depth == 0 else down(F.relu(s.head(y)), depth - 1)

    return down(s.branches(x), x.shape[0])


@each()
def raises_and_catches(s: Any, x: Any) -> Any:
    try:
        return s.one(x).view(2, -1, 30)
    except RuntimeError:
        return s.two(x)


@each()
def catches_within(s: Any, x: Any) -> Any:
    y = s.c1(x)
    try:
        y = y + x
    except (RuntimeError, ValueError):
        y = y * 2
    return s.b1(y)


@each()
def else_and_finally(s: Any, x: Any) -> Any:
    y = x
    try:
        y = s.one(x)
    except ValueError:
        y = s.two(x)
    else:
        y = y * 2
    finally:
        y = y + 1
    return y


@each()
def asserts(s: Any, x: Any) -> Any:
    torch._assert(x.shape[1] == 3, "three channels")
    if not torch.jit.is_scripting() and x.shape[-1] < 2:
        raise ValueError("too narrow")
    return s.branches(x)


# -- what it is called with


def given(**kwargs: Any) -> Any:
    """Return how to call a network with more arguments."""
    return lambda net, x: net(x, **{k: v(x) if callable(v) else v for k, v in kwargs.items()})


@each(call=given(scale=2.0))
def number_given(s: Any, x: Any, scale: float = 1.0) -> Any:
    return s.b1(s.c1(x) * scale)


@each(call=given(mask=lambda x: (x[:, :1] > 0).double()))
def mask_given(s: Any, x: Any, mask: Any = None) -> Any:
    y = s.c1(x)
    return s.b1(y if mask is None else y * mask)


@each(call=lambda net, x: (net(x), net(x, x[:, :1])))
def mask_given_at_times(s: Any, x: Any, mask: Any = None) -> Any:
    y = s.c1(x)
    return s.b1(y if mask is None else y * mask)


@each(call=lambda net, x: (net(x), net(x, True)))
def flag_given_at_times(s: Any, x: Any, both: bool = False) -> Any:
    return s.branches(x) if both else s.one(x)


@each(call=lambda net, x: (net(x), net(x, flip=True)))
def flag_among_keywords(s: Any, x: Any, **options: Any) -> Any:
    y = s.c1(x)
    return s.b1(y.flip(-1) if options.get("flip") else y) + s.two(x)


@each(call=lambda net, x: (net(x), net(x, x)))
def how_many_arguments(s: Any, *xs: Any) -> Any:
    return s.branches(xs[0]) if len(xs) == 1 else s.one(xs[0]) - s.two(xs[1])


@each(call=lambda net, x: net(x, upscale=x.shape[-1]))
def size_given(s: Any, x: Any, upscale: int = 1) -> Any:
    return F.interpolate(s.branches(x), size=(upscale, upscale))


@each(call=lambda net, x: net(x, "two"))
def text_given(s: Any, x: Any, which: str = "one") -> Any:
    return getattr(s, which)(x)


@each(call=lambda net, x: net(x, torch.relu))
def function_given(s: Any, x: Any, act: Any = torch.tanh) -> Any:
    return act(s.branches(x))


@each(call=lambda net, x: net({"image": x, "scale": 2.0}))
def mapping_given(s: Any, batch: Any) -> Any:
    return s.b1(s.c1(batch["image"]) * batch["scale"])


@each(call=lambda net, x: net([x, x * 2]))
def list_given(s: Any, xs: Any) -> Any:
    return s.one(xs[0]) + s.two(xs[-1])


@each(call=lambda net, x: (net([x]), net([x, x, x])))
def list_of_any_length(s: Any, xs: Any) -> Any:
    return sum(s.branches(x) for x in xs)


@each(call=lambda net, x: (net(x), net(x, skip=[])))
def mutable_default(s: Any, x: Any, skip: Any = ()) -> Any:
    return s.one(x) if "two" in skip else s.branches(x)


@each(call=lambda net, x: (net(x), net(x, only=[0, 1]), net(x, only=[1])))
def channels_asked_for(s: Any, x: Any, only: Any = None) -> Any:
    y = s.branches(x)
    return y if only is None else y[:, only]


class Inner(Block):
    def forward(self, x: Any, skip: Any = None, act: bool = True) -> Any:
        y = self.conv(x)
        y = self.norm(y if skip is None else y + skip)
        return y.relu() if act else y


@each(lambda s: setattr(s, "inner", Inner()), base=nn.Module)
def child_called_in_two_ways(s: Any, x: Any) -> Any:
    return s.inner(x) + s.inner(x, skip=x[:, :1], act=False)


@each(lambda s: setattr(s, "inner", Inner()), base=nn.Module)
def child_called_by_size(s: Any, x: Any) -> Any:
    return s.inner(x, act=x.shape[0] > 1)


@each(
    lambda s: [setattr(s, "a", conv()), setattr(s, "n", Norm(4)), setattr(s, "deep", True)],
    base=nn.Module,
)
def depth_by_attribute(s: Any, x: Any) -> Any:
    y = s.n(s.a(x))
    return F.relu(y) if s.deep else y


@each(base=Two)
def short_circuit(s: Any, x: Any) -> Any:
    return (x.shape[0] > 1 and s.one(x)) if x.shape[0] > 1 else s.two(x)


@each()
def where_on_values(s: Any, x: Any) -> Any:
    return torch.where(x.sum() > 0, s.one(x), s.two(x))


@each()
def masked_select(s: Any, x: Any) -> Any:
    y = s.branches(x)
    return y[y > 0]


@each()
def unique_values(s: Any, x: Any) -> Any:
    return torch.unique(s.branches(x).round())


@each()
def top_k_of_size(s: Any, x: Any) -> Any:
    y = s.branches(x).flatten(1)
    return y.topk(min(5, y.shape[1]), 1)


@each()
def sorts_images(s: Any, x: Any) -> Any:
    y = s.branches(x)
    order = sorted(range(len(y)), key=lambda i: float(y[i].sum()))
    return y[order]


@each()
def while_large(s: Any, x: Any) -> Any:
    y = s.branches(x)
    while y.abs().max() > 1:
        y = y / 2
    return y


@each()
def other_method_by_size(s: Any, x: Any) -> Any:
    return s.branches(x) if x.shape[0] > 1 else s.one(x) - s.two(x)


@each(call=lambda net, x: (net(x), net(x, True)))
def other_method_by_flag(s: Any, x: Any, apart: bool = False) -> Any:
    return (s.one(x), s.two(x)) if apart else s.branches(x)
