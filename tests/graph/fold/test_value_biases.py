"""The bias of an attention's values goes into the layer that reads its output, or stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.traps import gap, images, live
from refold import plan
from refold.graph.fold.value_biases import RULE

EXACT = 1e-9
WIDTH, HEADS = 12, 3


class Attention(nn.Module):
    """Queries, keys and values by layers of their own; the heads are mixed by `mix`."""

    def __init__(self, kv_heads: int = HEADS, dropout: float = 0.0) -> None:
        super().__init__()
        side = WIDTH // HEADS * kv_heads
        self.q, self.k, self.v = (nn.Linear(WIDTH, n) for n in (WIDTH, side, side))
        self.out = nn.Linear(WIDTH, WIDTH)
        self.dropout = dropout

    def heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, WIDTH // HEADS).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.heads(f(x)) for f in (self.q, self.k, self.v))
        mixed = self.mix(q, k, v)
        return torch.tanh(self.out(mixed.transpose(1, 2).reshape(x.shape)))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout)


class Spelled(Attention):
    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.dropout((q @ k.transpose(-2, -1) * 0.5).softmax(-1), 0.1, self.training) @ v


class Causal(Attention):
    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class MaskedBefore(Attention):
    """Whatever the mask is: a softmax adds up to one, or is not a number."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.matmul(q, k.transpose(-2, -1))
        scores = scores.masked_fill(torch.ones_like(scores).triu(1) > 0, float("-inf"))
        return torch.matmul(torch.softmax(scores, dim=3), v)


class Flat(Attention):
    """Heads in the batch, as the oldest attentions are written."""

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = (
            f(x).reshape(n, length, HEADS, -1).permute(0, 2, 1, 3).reshape(n * HEADS, length, -1)
            for f in (self.q, self.k, self.v)
        )
        mixed = torch.bmm(F.softmax(q.bmm(k.transpose(1, 2)), dim=-1), v)
        mixed = mixed.reshape(n, HEADS, length, -1).permute(0, 2, 1, 3).flatten(2)
        return torch.tanh(self.out(mixed))


class Repeated(Attention):
    """Fewer heads of keys and values than of queries, written out."""

    def __init__(self) -> None:
        super().__init__(kv_heads=1)

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n, heads, length, size = v.shape
        k, v = (
            t[:, :, None].expand(n, heads, HEADS, length, size).reshape(n, -1, length, size)
            for t in (k, v)
        )
        return super().mix(q, k, v)


MOVED = [Attention, Spelled, Causal, MaskedBefore, Flat, Repeated]


@pytest.mark.parametrize("make", MOVED)
def test_the_bias_is_moved(make: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model = live(make())
    done = plan(model, images(2, 5, WIDTH))
    folded: Any = done.apply()
    assert [step.where for step in done.steps if step.rule == RULE] == ["out"]
    assert folded.v.bias is None
    assert folded.q.bias is not None
    for shape in ((2, 5, WIDTH), (1, 1, WIDTH), (3, 8, WIDTH)):
        for _ in range(2):
            assert gap(model, folded, images(*shape)) <= EXACT
    naive = live(make())
    naive.load_state_dict(model.state_dict())
    naive.v.bias.data.zero_()
    assert gap(model, naive, images(2, 5, WIDTH)) > 1e-3


class Masked(Attention):
    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class Grouped(Attention):
    def __init__(self) -> None:
        super().__init__(kv_heads=1)

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


class ReadTwice(Attention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.heads(f(x)) for f in (self.q, self.k, self.v))
        mixed = self.mix(q, k, v).transpose(1, 2).reshape(x.shape)
        return torch.tanh(self.out(mixed)) + v.mean()


class Rounded(Attention):
    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = F.softmax(q @ k.transpose(-2, -1), dim=-1, dtype=torch.float32)
        return weights.to(q.dtype) @ v


class Unnormalised(Attention):
    """Weights that do not add up to one over the keys."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.sigmoid(q @ k.transpose(-2, -1)) @ v


class OverQueries(Attention):
    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1)).softmax(-2) @ v


class Reweighted(Attention):
    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1)).softmax(-1).tril() @ v


class Scrambled(Attention):
    """Memory read as heads without a transpose: every key has channels of its own."""

    def heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], HEADS, -1, WIDTH // HEADS)


class Optional(Attention):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (self.heads(f(x)) for f in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return torch.tanh(self.out(mixed.transpose(1, 2).reshape(x.shape)))


STAYS = {
    "mask": (Masked, "mask of the attention"),
    "dropout": (lambda: Attention(dropout=0.2), "dropout is active"),
    "grouped": (Grouped, "enable_gqa"),
    "two readers": (ReadTwice, "mean reads its values as well"),
    "precision": (Rounded, None),
    "not normalised": (Unnormalised, None),
    "over queries": (OverQueries, None),
    "weights changed": (Reweighted, None),
    "scrambled": (Scrambled, "keys have channels of their own"),
    "optional mask": (Optional, "mask may be given"),
}


@pytest.mark.parametrize("name", STAYS)
def test_the_bias_stays_where_weights_may_not_add_up(name: str) -> None:
    make, reason = STAYS[name]
    torch.manual_seed(0)
    model: Any = live(make())
    done = plan(model, images(2, 6, WIDTH))
    folded: Any = done.apply()
    assert folded.v.bias is not None
    assert not [step for step in done.steps if step.rule == RULE]
    if reason is not None:
        assert any(kept.where == "v" and reason in kept.reason for kept in done.kept)
    if name not in ("dropout", "mask"):
        assert gap(model, folded, images(2, 6, WIDTH)) <= EXACT


def test_a_bias_meets_no_padding() -> None:
    class Maps(nn.Module):
        """The attention's output is a map, which a padded convolution reads."""

        def __init__(self, padding: int) -> None:
            super().__init__()
            self.v, self.q = nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 1)
            self.out = nn.Conv1d(4, 5, 3, padding=padding)

        def forward(self, x: Tensor) -> Tensor:
            q, v = (f(x).transpose(1, 2) for f in (self.q, self.v))
            return torch.tanh(self.out(F.scaled_dot_product_attention(q, q, v).transpose(1, 2)))

    for padding in (0, 1):
        model = live(Maps(padding))
        done = plan(model, images(2, 4, 7))
        folded: Any = done.apply()
        assert (folded.v.bias is None) == (padding == 0)
        assert gap(model, folded, images(2, 4, 7)) <= EXACT
        if padding:
            assert any("zero padding" in kept.reason for kept in done.kept)
