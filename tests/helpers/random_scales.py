"""The many ways in which PyTorch code scales and shifts channels."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refold.algebra.operator import Affine

EPS = (1e-5, 1e-3)


class Step(nn.Module):
    """A function of a value and of the tensors kept here: a call inside somebody's forward."""

    def __init__(self, function: Callable[..., Tensor], **tensors: Tensor | None) -> None:
        super().__init__()
        self.function = function
        self.names = [name for name, tensor in tensors.items() if tensor is not None]
        for name in self.names:
            self.register_parameter(name, nn.Parameter(tensors[name].double().clone()))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, **{name: getattr(self, name) for name in self.names})


class BufferStep(Step):
    """The same with buffers."""

    def __init__(self, function: Callable[..., Tensor], **tensors: Tensor) -> None:
        super().__init__(function)
        self.names = list(tensors)
        for name, tensor in tensors.items():
            own = tensor.double() if tensor.is_floating_point() else tensor
            self.register_buffer(name, own.clone())


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


class ScaleWriter:
    """Writes scales and shifts on values (N, C, *spatial), or (N, ..., C) at rank 0.

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

    def affine(self, op: Affine) -> nn.Module:
        scale, shift = op.scale, op.shift
        sized = next((v for v in (scale, shift) if v is not None and v.ndim), None)
        if shift is not None and sized is not None and not self.tokens:
            one = torch.ones_like(sized) if scale is None else scale.expand_as(sized)
            return self.norm(one, shift.expand_as(sized))
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
        frozen, functional = FrozenNorm(norm, self.rank), FunctionalNorm(norm, self.rank)
        return self.rng.choice([norm, norm, frozen, functional])

    def view(self, vector: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """A vector as it is stored, and how a forward spreads it over the map."""
        ones = (1,) * self.rank
        forms = [
            (vector.reshape(-1, *ones), lambda p: p),
            (vector, lambda p: p.reshape(-1, *ones)),
            (vector, lambda p: p[(..., *(None,) * len(ones))]),
        ]
        if not self.tokens:
            forms.append((vector.reshape(1, -1, *ones), lambda p: p))
            forms.append((vector, lambda p: p.view((1, -1, *ones))))
        return self.rng.choice(forms)

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
