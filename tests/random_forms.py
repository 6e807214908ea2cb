"""The many ways people write one affine step in PyTorch: an operator in, a random `nn.Module` that computes it out."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refold.algebra.operator import Affine, AvgPool, Conv, Pad, Select
from refold.rules.weights import regroup

EPS = (1e-5, 1e-3)


class UnwritableError(Exception):
    """PyTorch has no layer for this operator."""


class Step(nn.Module):
    """A function of a value and of the tensors kept here: a call inside somebody's forward."""

    def __init__(self, function: Callable[..., Tensor], **tensors: Tensor | None) -> None:
        super().__init__()
        self.function = function
        self.names = [name for name, tensor in tensors.items() if tensor is not None]
        for name in self.names:
            self.register_parameter(name, nn.Parameter(tensors[name].double()))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, **{name: getattr(self, name) for name in self.names})


class BufferStep(Step):
    """The same with buffers."""

    def __init__(self, function: Callable[..., Tensor], **tensors: Tensor) -> None:
        super().__init__(function)
        self.names = list(tensors)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.double() if tensor.is_floating_point() else tensor)


class FrozenNorm(nn.Module):
    """Torchvision's frozen batch norm, written out."""

    def __init__(self, norm: nn.Module, rank: int) -> None:
        super().__init__()
        self.shape, self.eps = (1, -1, *(1,) * rank), norm.eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        w, b = self.weight.reshape(self.shape), self.bias.reshape(self.shape)
        var, mean = self.running_var.reshape(self.shape), self.running_mean.reshape(self.shape)
        scale = w * (var + self.eps).rsqrt()
        return x * scale + (b - mean * scale)


class FunctionalNorm(FrozenNorm):
    """`F.batch_norm` on tensors that the module keeps itself."""

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.1, self.eps)


class Writer:
    """Writes leaves of one rank: values are (N, C, *spatial), or (N, ..., C) at rank 0.

    Args:
        rng: decides which form is taken.
        rank: spatial axes.
        tokens: at rank 0, whether there are axes between N and C.
    """

    def __init__(self, rng: Random, rank: int, *, tokens: bool = False) -> None:
        self.rng, self.rank, self.tokens = rng, rank, tokens
        self.dim = -1 - rank
        self.noise = torch.Generator().manual_seed(rng.getrandbits(31))

    def noise_like(self, tensor: Tensor, low: float, high: float) -> Tensor:
        random = torch.rand(tensor.shape, generator=self.noise, dtype=torch.float64)
        return random * (high - low) + low

    def coin(self) -> bool:
        return self.rng.random() < 0.5

    # -- scales and shifts ----------------------------------------------------------------------------------

    def affine(self, op: Affine) -> nn.Module:
        scale, shift = op.scale, op.shift
        sized = next((v for v in (scale, shift) if v is not None and v.ndim), None)
        if sized is not None and not self.tokens and (shift is not None or self.coin()):
            whole = torch.ones_like(sized) if scale is None else scale.expand_as(sized)
            return self.norm(whole, torch.zeros_like(sized) if shift is None else shift)
        parts = [] if scale is None else [self.scale(scale)]
        parts += [] if shift is None else [self.shift(shift)]
        return parts[0] if len(parts) == 1 else nn.Sequential(*parts)

    def norm(self, scale: Tensor, shift: Tensor) -> nn.Module:
        """A norm with random statistics that scales and shifts by just this much."""
        channels = scale.shape[0]
        var, mean = self.noise_like(scale, 0.3, 2.0), self.noise_like(scale, -1.0, 1.0)
        eps = self.rng.choice(EPS)
        plain = getattr(nn, f"BatchNorm{max(self.rank, 1)}d")
        kinds = [plain, plain, nn.SyncBatchNorm]
        kinds += [getattr(nn, f"InstanceNorm{self.rank}d")] if self.rank else []
        kind = self.rng.choice(kinds)
        options = {} if kind in (plain, nn.SyncBatchNorm) else {"track_running_stats": True}
        norm = kind(channels, eps=eps, affine=True, **options).double()
        with torch.no_grad():
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(var)
            norm.weight.copy_(scale * torch.sqrt(var + eps))
            norm.bias.copy_(shift + mean * scale)
        return self.rng.choice([norm, norm, FrozenNorm(norm, self.rank), FunctionalNorm(norm, self.rank)])

    def view(self, vector: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """A vector as it is stored, and how a forward spreads it over the map."""
        ones = (1,) * self.rank
        return self.rng.choice(
            [
                (vector.reshape(-1, *ones), lambda p: p),
                (vector.reshape(1, -1, *ones), lambda p: p) if not self.tokens else (vector.reshape(-1, *ones), lambda p: p),
                (vector, lambda p: p.reshape(-1, *ones)),
                (vector, lambda p: p.view((1, -1, *ones))) if not self.tokens else (vector, lambda p: p.view(-1)),
                (vector, lambda p: p[(..., *(None,) * len(ones))]),
            ]
        )

    def scale(self, factor: Tensor) -> nn.Module:
        if not factor.ndim:
            value = float(factor)
            return self.rng.choice(
                [
                    Step(lambda x: x * value),
                    Step(lambda x: value * x),
                    Step(lambda x: x / (1 / value)),
                    Step(lambda x: torch.neg(x).mul(-value)),
                    Step(lambda x: -(x * -value)),
                    BufferStep(lambda x, s: torch.mul(x, s), s=factor.clone()),
                ]
            )
        stored, spread = self.view(factor)
        inverse, unspread = self.view(1 / factor)
        return self.rng.choice(
            [
                Step(lambda x, gamma: x * spread(gamma), gamma=stored),
                Step(lambda x, gamma: spread(gamma) * x, gamma=stored),
                Step(lambda x, gamma: x.mul(spread(gamma)), gamma=stored),
                BufferStep(lambda x, gamma: torch.mul(x, spread(gamma)), gamma=stored),
                Step(lambda x, gamma: x / unspread(gamma), gamma=inverse),
                Step(lambda x, gamma: torch.div(x, unspread(gamma)), gamma=inverse),
            ]
        )

    def shift(self, addend: Tensor) -> nn.Module:
        if not addend.ndim:
            value = float(addend)
            return self.rng.choice([Step(lambda x: x + value), Step(lambda x: x - -value)])
        stored, spread = self.view(addend)
        return self.rng.choice(
            [
                Step(lambda x, beta: x + spread(beta), beta=stored),
                Step(lambda x, beta: spread(beta) + x, beta=stored),
                Step(lambda x, beta: x.add(spread(beta)), beta=stored),
                Step(lambda x, beta: x - spread(beta), beta=-stored),
                Step(lambda x, beta: -(spread(beta) - x), beta=-stored),
                Step(lambda x, beta: torch.add(x, spread(beta), alpha=2), beta=stored / 2),
                Step(lambda x, beta: torch.sub(x, spread(beta), alpha=0.5), beta=-2 * stored),
            ]
        )

    # -- windows --------------------------------------------------------------------------------------------

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
                return self.layer(kind, None, op.weight, op.bias, {**options, "padding_mode": op.mode})
            return self.layer(kind, function, op.weight, op.bias, options)
        rings = Pad(tuple((a.lo, a.hi) for a in op.axes), op.mode)
        return nn.Sequential(*self.pads(rings), self.layer(kind, function, op.weight, op.bias, options))

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
        if min(lows) < 0 or any(e >= max(a.stride, a.dilation) for e, a in zip(extra, op.axes, strict=True)):
            raise UnwritableError
        options = {**self.options(op), "padding": lows, "output_padding": extra}
        kind, function = getattr(nn, f"ConvTranspose{self.rank}d"), getattr(F, f"conv_transpose{self.rank}d")
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

    # -- rings and choices ----------------------------------------------------------------------------------

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
