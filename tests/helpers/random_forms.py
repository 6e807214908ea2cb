"""The ways in which PyTorch code writes one affine step: an operator in, a random module out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.random_scales import BufferStep, ScaleWriter, Step
from refold.algebra.operator import AvgPool, Conv, Pad, Select
from refold.rules.weights import regroup


class UnwritableError(Exception):
    """PyTorch has no layer for this operator."""


class Writer(ScaleWriter):
    """Writes every kind of leaf."""

    # -- windows

    def conv(self, op: Conv) -> nn.Module:
        if op.transposed:
            return self.scatter(op)
        if not self.rank:
            return self.layer(nn.Linear, F.linear, regroup(op.weight, op.groups, 1), op.bias, {})
        lows, highs = [a.lo for a in op.axes], [a.hi for a in op.axes]
        options = self.options(op)
        kind = getattr(nn, f"Conv{self.rank}d")
        function = getattr(F, f"conv{self.rank}d")
        if min(lows) >= 0 and lows == highs and (op.mode == "zeros" or self.coin()):
            padding: Any = tuple(lows)
            if self.rng.random() < 0.2 and not any(lows):
                padding = "valid"
            options["padding"] = padding
            if op.mode != "zeros":
                options["padding_mode"] = op.mode
                return self.layer(kind, None, op.weight, op.bias, options)
            return self.layer(kind, function, op.weight, op.bias, options)
        rings = Pad(tuple((a.lo, a.hi) for a in op.axes), op.mode)
        made = self.layer(kind, function, op.weight, op.bias, options)
        return nn.Sequential(*self.pads(rings), made)

    def options(self, op: Conv) -> dict[str, Any]:
        return {
            "stride": tuple(a.stride for a in op.axes),
            "dilation": tuple(a.dilation for a in op.axes),
            "groups": op.groups,
        }

    def layer(
        self, kind: Any, function: Any, weight: Tensor, bias: Tensor | None, options: dict[str, Any]
    ) -> nn.Module:
        if function is not None and self.rng.random() < 0.25:
            return Step(lambda x, w, b=None: function(x, w, b, **options), w=weight.clone(), b=bias)
        sizes = [weight.shape[1], weight.shape[0]]
        if kind is not nn.Linear:
            transposed = "Transpose" in kind.__name__
            sizes = [weight.shape[1] * options["groups"], weight.shape[0]]
            sizes = sizes[::-1] if transposed else sizes
            options = {**options, "kernel_size": tuple(weight.shape[2:])}
        made = kind(*sizes, bias=bias is not None, **options).double()
        with torch.no_grad():
            made.weight.copy_(weight)
            if bias is not None:
                made.bias.copy_(bias)
        return made

    def scatter(self, op: Conv) -> nn.Module:
        """A transposed convolution; what torch does not crop by itself is cut off afterwards."""
        lows = tuple(a.lo for a in op.axes)
        extra = tuple(max(0, a.lo - a.hi) for a in op.axes)
        rest = Pad(tuple((0, min(0, a.lo - a.hi)) for a in op.axes))
        steps = [max(a.stride, a.dilation) for a in op.axes]
        if min(lows) < 0 or any(e >= step for e, step in zip(extra, steps, strict=True)):
            raise UnwritableError
        options = {**self.options(op), "padding": lows, "output_padding": extra}
        kind = getattr(nn, f"ConvTranspose{self.rank}d")
        function = getattr(F, f"conv_transpose{self.rank}d")
        made = self.layer(kind, function, op.weight, op.bias, options)
        return nn.Sequential(made, *self.pads(rest)) if any(map(any, rest.amounts)) else made

    def pool(self, op: AvgPool) -> nn.Module:
        lows, highs = [a.lo for a in op.axes], [a.hi for a in op.axes]
        kernel, stride = tuple(a.kernel for a in op.axes), tuple(a.stride for a in op.axes)
        kind, function = getattr(nn, f"AvgPool{self.rank}d"), getattr(F, f"avg_pool{self.rank}d")
        fits = lows == highs and all(0 <= a.lo <= a.kernel // 2 for a in op.axes)
        padding = tuple(lows) if fits else (0,) * self.rank
        parts = [] if fits else self.pads(Pad(tuple((a.lo, a.hi) for a in op.axes)))
        options = {} if self.rank == 1 else {"divisor_override": op.divisor}
        layer = kind(kernel, stride, padding, **options)
        call = Step(lambda x: function(x, kernel, stride, padding, **options))
        parts.append(self.rng.choice([layer, layer, call]))
        if self.rank == 1 and op.divisor is not None:
            parts.append(self.scale(torch.tensor(kernel[0] / op.divisor, dtype=torch.float64)))
        return parts[0] if len(parts) == 1 else nn.Sequential(*parts)

    # -- rings and choices

    def pads(self, op: Pad) -> list[nn.Module]:
        """Rings first, then crops: as modules, functions or slices."""
        rings = tuple((max(0, lo), max(0, hi)) for lo, hi in op.amounts)
        crops = tuple((min(0, lo), min(0, hi)) for lo, hi in op.amounts)
        if op.mode == "zeros" and self.coin():
            flat = [n for pair in reversed(op.amounts) for n in pair]
            return [Step(lambda x: F.pad(x, flat))]
        parts = [self.ring(rings, op.mode)] if any(map(any, rings)) else []
        return parts + ([self.crop(crops)] if any(map(any, crops)) else [])

    def ring(self, rings: tuple[tuple[int, int], ...], mode: str) -> nn.Module:
        flat = [n for pair in reversed(rings) for n in pair]
        if mode == "zeros":
            made = getattr(nn, f"ZeroPad{self.rank}d")(tuple(flat))
            return self.rng.choice([made, Step(lambda x: F.pad(x, flat, "constant", 0.0))])
        name = {"reflect": "Reflection", "replicate": "Replication", "circular": "Circular"}[mode]
        made = getattr(nn, f"{name}Pad{self.rank}d")(tuple(flat))
        return self.rng.choice([made, Step(lambda x: F.pad(x, flat, mode))])

    def crop(self, amounts: tuple[tuple[int, int], ...]) -> nn.Module:
        slices = tuple(slice(-lo or None, hi or None) for lo, hi in amounts)
        return Step(lambda x: x[(..., *slices)])

    def select(self, op: Select) -> nn.Module:
        first, dim = op.index[0], self.dim
        if op.index == tuple(range(first, first + len(op.index))):
            last = first + len(op.index)
            where = (..., slice(first, last), *(slice(None),) * self.rank)
            return self.rng.choice(
                [Step(lambda x: x[where]), Step(lambda x: x.narrow(dim, first, last - first))]
            )
        index = torch.tensor(op.index)
        return BufferStep(lambda x, index: torch.index_select(x, dim, index), index=index)
