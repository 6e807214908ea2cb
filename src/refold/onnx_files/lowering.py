"""Torch's layers in ONNX's words, as the opset of the file spells them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from refold.exporting import require
from refold.graph import (
    ChannelClamp,
    ChannelSlope,
    Crop,
    Cropped,
    ScaleShift,
    SelectChannels,
    UnwritableError,
)
from refold.onnx_files.tensors import LARGE, header, to_proto
from refold.ranked import CONVS, POOLS, SCATTERS

_BROADCASTS = 8  # the opset from which Max and Min take a bound per channel
_BIAS_OPTIONAL = 11  # the opset from which Gemm may have none
_SPLIT_BY_INPUT = 13  # the opset from which the sizes of a split are an input
_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@dataclass(eq=False)
class Lowering:
    """Writes nodes and the weights that they need.

    Args:
        opset: of the file.
        taken: every name that a value has or had.
        nodes: what was written.
        tensors: the weights.
        large: the numbers of those that hold none.
    """

    opset: int
    taken: set[str]
    nodes: list[Any] = field(default_factory=list[Any])
    tensors: list[Any] = field(default_factory=list[Any])
    known: dict[object, str] = field(default_factory=dict[object, str])
    large: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def fresh(self, base: str) -> str:
        """Return a name that no value has had."""
        count, name = 0, base
        while name in self.taken:
            count += 1
            name = f"{base}_{count}"
        self.taken.add(name)
        return name

    def node(self, kind: str, inputs: Sequence[str], output: str, name: str, **given: Any) -> None:
        """Write one node."""
        onnx = require("onnx", "onnx")
        self.nodes.append(onnx.helper.make_node(kind, list(inputs), [output], name=name, **given))

    def split(
        self, source: str, outputs: Sequence[str], axis: int, sizes: Sequence[int], name: str
    ) -> None:
        """Write a split."""
        onnx = require("onnx", "onnx")
        given: dict[str, Any] = {"axis": axis}
        inputs = [source]
        if self.opset < _SPLIT_BY_INPUT:
            given["split"] = list(sizes)
        else:
            inputs.append(self.weight(torch.tensor(list(sizes)), f"{name}.sizes"))
        self.nodes.append(onnx.helper.make_node("Split", inputs, list(outputs), name, **given))

    def weight(self, tensor: Tensor, base: str) -> str:
        """Store a tensor, unless there is one like it; return its name.

        The numbers of a large one are not copied: they are written when the file is.
        """
        if tensor.nbytes > LARGE:
            name = self.fresh(base)
            self.tensors.append(header(tensor, name))
            self.large[name] = tensor
            return name
        proto = to_proto(tensor, "")
        key = proto.data_type, tuple(proto.dims), hash(proto.raw_data)
        if key not in self.known:
            proto.name = self.known[key] = self.fresh(base)
            self.tensors.append(proto)
        return self.known[key]

    # layers

    def layer(self, call: fx.Node, module: nn.Module, source: str, output: str, name: str) -> None:
        """Write a layer.

        Raises:
            UnwritableError: when ONNX has none like it.
        """
        write = next((w for kind, w in self._writers() if isinstance(module, kind)), None)
        if write is None:
            raise _foreign(call, type(module).__name__)
        write(call, module, source, output, name)

    def _writers(self) -> list[tuple[Any, Callable[..., None]]]:
        return [
            (Cropped, self._cropped),
            (tuple(CONVS.values()), self._conv),
            (tuple(SCATTERS.values()), self._scatter),
            (nn.Linear, self._linear),
            (ScaleShift, self._scale_shift),
            (tuple(POOLS.values()), self._pool),
            (Crop, self._crop),
            (SelectChannels, self._select),
            (nn.PReLU, self._prelu),
            (ChannelSlope, self._slope),
            (ChannelClamp, self._clamp),
        ]

    def _stored(self, module: Any, name: str) -> list[str]:
        names = [self.weight(module.weight, f"{name}.weight")]
        if module.bias is not None:
            names.append(self.weight(module.bias, f"{name}.bias"))
        return names

    def _conv(
        self, call: fx.Node, module: Any, source: str, output: str, name: str,
        pads: Sequence[tuple[int, int]] | None = None, auto_pad: str | None = None,
    ) -> None:  # fmt: skip
        pairs = [(p, p) for p in module.padding] if pads is None else list(pads)
        if module.padding_mode != "zeros" and any(pair != (0, 0) for pair in pairs):
            source = self._pad(call, source, pairs, module.padding_mode, 0.0, name)
            pairs = [(0, 0)] * len(pairs)
        windows: dict[str, Any] = (
            {"pads": _flat(pairs)} if auto_pad is None else {"auto_pad": auto_pad}
        )
        self.node(
            "Conv", [source, *self._stored(module, name)], output, name,
            kernel_shape=list(module.kernel_size), strides=list(module.stride),
            dilations=list(module.dilation), group=module.groups, **windows,
        )  # fmt: skip

    def same_conv(
        self, call: fx.Node, module: Any, source: str, output: str, name: str, old: Any, pad: str
    ) -> None:
        """Write a convolution whose padding sizes decide, as that of the file does (`auto_pad`).

        Raises:
            UnwritableError: when its window is another than the old layer's.
        """
        window = ("kernel_size", "stride", "dilation")
        if any(module.padding) or any(getattr(module, k) != getattr(old, k) for k in window):
            raise _foreign(call, "a convolution of another window, padded by its size")
        self._conv(call, module, source, output, name, auto_pad=pad)

    def _scatter(
        self, call: fx.Node, module: Any, source: str, output: str, name: str,
        crop: Sequence[tuple[int, int]] = (),
    ) -> None:  # fmt: skip
        pairs = [(p, p) for p in module.padding]
        if crop:
            pairs = [(a - lo, b - hi) for (a, b), (lo, hi) in zip(pairs, crop, strict=True)]
        extra = (
            {"output_padding": list(module.output_padding)} if any(module.output_padding) else {}
        )
        self.node(
            "ConvTranspose", [source, *self._stored(module, name)], output, name,
            kernel_shape=list(module.kernel_size), strides=list(module.stride),
            dilations=list(module.dilation), group=module.groups, pads=_flat(pairs), **extra,
        )  # fmt: skip

    def _linear(self, call: fx.Node, module: Any, source: str, output: str, name: str) -> None:
        if call.meta.get("axes") == 2 and (module.bias is not None or self.opset >= _BIAS_OPTIONAL):
            self.node(
                "Gemm", [source, *self._stored(module, name)], output, name,
                alpha=1.0, beta=1.0, transA=0, transB=1,
            )  # fmt: skip
            return
        weight = self.weight(module.weight.T, f"{name}.weight")
        if module.bias is None:
            self.node("MatMul", [source, weight], output, name)
            return
        product = self.fresh(f"{output}.product")
        self.node("MatMul", [source, weight], product, name)
        bias = self.weight(module.bias, f"{name}.bias")
        self.node("Add", [product, bias], output, f"{name}.bias")

    def _scale_shift(self, call: fx.Node, module: Any, source: str, output: str, name: str) -> None:
        parts = [("Mul", module.weight, "scale"), ("Add", module.bias, "shift")]
        parts = [part for part in parts if part[1] is not None]
        if not parts:
            raise _foreign(call, "a scale of nothing")
        for at, (kind, vector, word) in enumerate(parts):
            laid = vector if vector.ndim == 0 else vector.reshape(-1, *(1,) * module.rank)
            if laid.ndim == 0 and laid.dtype != call.meta.get("dtype", laid.dtype):
                laid = laid.to(call.meta["dtype"])
            target = output if at == len(parts) - 1 else self.fresh(f"{output}.{word}")
            stored = self.weight(laid, f"{name}.{word}")
            self.node(kind, [source, stored], target, name if at == 0 else f"{name}.{word}")
            source = target

    def _pool(
        self, call: fx.Node, module: Any, source: str, output: str, name: str,
        pads: Sequence[tuple[int, int]] | None = None,
    ) -> None:  # fmt: skip
        kernel, strides, padding = (
            list(value) if isinstance(value, tuple) else [value] * call.meta.get("spatial", 1)
            for value in (module.kernel_size, module.stride, module.padding)
        )
        if getattr(module, "divisor_override", None) or module.ceil_mode:
            raise _foreign(call, "an average with a divisor of its own")
        pairs = [(p, p) for p in padding] if pads is None else list(pads)
        counts = int(pads is not None or module.count_include_pad)
        self.node(
            "AveragePool", [source], output, name,
            kernel_shape=kernel, strides=strides, pads=_flat(pairs), count_include_pad=counts,
        )  # fmt: skip

    def _cropped(self, call: fx.Node, module: Any, source: str, output: str, name: str) -> None:
        crop, layer = module.parts()
        if isinstance(layer, tuple(SCATTERS.values())):
            self._scatter(call, layer, source, output, name, crop=crop.amounts)
            return
        plain = crop.mode == "zeros" and not crop.value and _is_window(crop, layer)
        pads = crop.amounts
        if not plain:
            source = self._pad(call, source, crop.amounts, crop.mode, crop.value, name)
            pads = ((0, 0),) * len(crop.amounts)
        write = self._conv if isinstance(layer, tuple(CONVS.values())) else self._pool
        write(call, layer, source, output, name, pads=pads)

    def _crop(self, call: fx.Node, module: Any, source: str, output: str, name: str) -> None:
        self._pad(call, source, module.amounts, module.mode, module.value, name, output)

    def _pad(
        self, call: fx.Node, source: str, pairs: Sequence[tuple[int, int]], mode: str, value: float,
        name: str, output: str | None = None,
    ) -> str:  # fmt: skip
        target = self.fresh(f"{name}.padded") if output is None else output
        if mode == "circular" and self.opset < 19:
            raise _foreign(call, "a padding that goes around")
        before = int(call.meta.get("axes", len(pairs) + 2)) - len(pairs)
        amounts, given = _flat([(0, 0)] * before + list(pairs)), {"mode": _MODES[mode]}
        inputs = [source]
        if self.opset < 11:
            self.node(
                "Pad", inputs, target, f"{name}.pad", pads=amounts, value=float(value), **given
            )
            return target
        inputs.append(self.weight(torch.tensor(amounts), f"{name}.pads"))
        if value:
            dtype = call.meta.get("dtype", torch.float32)
            inputs.append(self.weight(torch.tensor(value, dtype=dtype), f"{name}.fill"))
        self.node("Pad", inputs, target, f"{name}.pad", **given)
        return target

    def _select(self, call: fx.Node, module: Any, source: str, output: str, name: str) -> None:
        index = self.weight(module.index, f"{name}.index")
        self.node("Gather", [source, index], output, name, axis=-1 - module.rank)

    def _prelu(self, call: fx.Node, module: Any, source: str, output: str, name: str) -> None:
        self._bend(call, module.weight, source, output, name)

    def _slope(self, call: fx.Node, module: Any, source: str, output: str, name: str) -> None:
        self._bend(call, module.slope, source, output, name)

    def _bend(self, call: fx.Node, slope: Tensor, source: str, output: str, name: str) -> None:
        spatial = int(call.meta.get("axes", 2)) - 2
        laid = slope if slope.numel() == 1 else slope.reshape(-1, *(1,) * spatial)
        self.node("PRelu", [source, self.weight(laid, f"{name}.slope")], output, name)

    def _clamp(self, call: fx.Node, module: Any, source: str, output: str, name: str) -> None:
        if self.opset < _BROADCASTS:
            raise _foreign(call, "bounds that differ by channel")
        low, high = (self.weight(t, f"{name}.{w}") for t, w in zip(
            (module.low, module.high), ("low", "high"), strict=True
        ))  # fmt: skip
        raised = self.fresh(f"{output}.raised")
        self.node("Max", [source, low], raised, name)
        self.node("Min", [raised, high], output, f"{name}.high")

    # functions

    def reshape(self, sizes: Sequence[int], source: str, output: str, name: str) -> None:
        """Write a reshape."""
        stored = self.weight(torch.tensor(list(sizes)), f"{output}.sizes")
        self.node("Reshape", [source, stored], output, name)

    def function(self, call: fx.Node, sources: list[str], output: str, name: str) -> None:
        """Write a function that a fold added.

        Raises:
            UnwritableError: when ONNX has none like it.
        """
        target: Any = call.target
        kinds = {operator.add: "Add", operator.sub: "Sub"}
        if target in kinds and len(sources) == 2:
            self.node(kinds[target], sources, output, name)
        elif target is torch.cat:
            self._concat(call, sources, output, name)
        elif target is operator.getitem and isinstance(call.args[1], tuple):
            self._slice(call, sources[0], output, name)
        else:
            raise _foreign(call, str(getattr(target, "__name__", target)))

    def _concat(self, call: fx.Node, sources: list[str], output: str, name: str) -> None:
        axis: Any = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", 0)
        axes = call.meta.get("axes")
        if axis < 0 and self.opset < 11:
            if axes is None:
                raise _foreign(call, "values side by side along an unknown axis")
            axis += axes
        self.node("Concat", sources, output, name, axis=axis)

    def _slice(self, call: fx.Node, source: str, output: str, name: str) -> None:
        entries: Any = call.args[1]
        cut = [(i, e) for i, e in enumerate(entries) if e != slice(None)]
        if any(not isinstance(e, slice) for _, e in cut):
            raise _foreign(call, "a choice of positions")
        starts = [int(e.start or 0) for _, e in cut]
        ends = [int((1 << 31) - 1 if e.stop is None else e.stop) for _, e in cut]
        steps = [int(e.step or 1) for _, e in cut]
        axes = [i for i, _ in cut]
        if self.opset < 10:
            if max(steps) > 1:
                raise _foreign(call, "a choice of positions")
            self.node("Slice", [source], output, name, starts=starts, ends=ends, axes=axes)
            return
        words = {"starts": starts, "ends": ends, "axes": axes}
        if max(steps) > 1:
            words["steps"] = steps
        stored = [self.weight(torch.tensor(v), f"{name}.{word}") for word, v in words.items()]
        self.node("Slice", [source, *stored], output, name)


def _flat(pairs: Sequence[tuple[int, int]]) -> list[int]:
    return [lo for lo, _ in pairs] + [hi for _, hi in pairs]


def _is_window(crop: Crop, layer: Any) -> bool:
    """Say whether a layer can do the padding itself."""
    kernel = layer.kernel_size if isinstance(layer.kernel_size, tuple) else (layer.kernel_size,)
    is_conv = isinstance(layer, tuple(CONVS.values()))
    return all(
        lo >= 0 and hi >= 0 and (is_conv or max(lo, hi) < size)
        for (lo, hi), size in zip(crop.amounts, kernel, strict=True)
    )


def _foreign(call: fx.Node, what: str) -> UnwritableError:
    return UnwritableError(f"ONNX has no node for what the fold would make: {what}", {call})
