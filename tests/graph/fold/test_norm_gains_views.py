"""The gain of a norm goes through changes of layout into the layers behind them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.traps import conv, gap, images, net, sound

GAINED = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm2d)


def drawn(norm: nn.Module) -> nn.Module:
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


def gains(model: nn.Module) -> int:
    return sum(
        getattr(module, "weight", None) is not None
        for module in model.modules()
        if isinstance(module, GAINED)
    )


def rows_of_maps(self: Any, x: Tensor) -> Tensor:
    return self.one(self.norm(x).flatten(2).transpose(1, 2))


def last_axis(self: Any, x: Tensor) -> Tensor:
    return self.one(self.norm(x).permute(0, 2, 3, 1))


def averaged(self: Any, x: Tensor) -> Tensor:
    return self.one(self.norm(x).mean((2, 3)))


def several(self: Any, x: Tensor) -> Tensor:
    rows = self.norm(x).flatten(2).transpose(1, 2).contiguous()
    return self.one(rows).tanh() * self.two(rows) + self.three(rows.transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize("forward", [rows_of_maps, last_axis, averaged, several])
@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 6), nn.InstanceNorm2d(6, affine=True)])
def test_maps_are_read_as_rows(forward: Any, norm: nn.Module) -> None:
    twice = {name: nn.Linear(6, 4) for name in ("one", "two")}
    model = net(forward, norm=drawn(norm), three=nn.Conv1d(6, 4, 1), **twice)
    done = sound(model, images(2, 6, 3, 4))
    folded = done.apply()
    assert gains(folded) == 0
    assert gap(model, folded, images(3, 6, 5, 4)) <= 1e-9


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.RMSNorm(6)])
def test_rows_are_read_as_maps(norm: nn.Module) -> None:
    model = net(
        lambda self, x: self.conv(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
        norm=drawn(norm), conv=nn.Conv2d(6, 4, 3, groups=2),
    )  # fmt: skip
    assert gains(sound(model, images(2, 6, 5, 5)).apply()) == 0


def class_token(self: Any, x: Tensor) -> Tensor:
    return self.one(self.norm(x)[:, 0])


def last_token(self: Any, x: Tensor) -> Tensor:
    return self.one(self.norm(x)[:, -1, :])


def token_and_others(self: Any, x: Tensor) -> Tensor:
    rows = self.norm(x)
    return self.one(rows[:, 0]) + self.two(rows[:, 1:]).mean(1)


@pytest.mark.parametrize("forward", [class_token, last_token, token_and_others])
def test_some_of_the_rows_are_read(forward: Any) -> None:
    model = net(
        forward, norm=drawn(nn.LayerNorm(6)), one=nn.Linear(6, 4), two=nn.Linear(6, 4, False)
    )
    folded = sound(model, images(2, 5, 6)).apply()
    assert gains(folded) == 0
    assert gap(model, folded, images(3, 8, 6)) <= 1e-9


def some_images(self: Any, x: Tensor) -> Tensor:
    return self.one(self.norm(x)[1:])


def test_some_of_the_batch_is_no_choice_of_rows() -> None:
    model = net(some_images, norm=drawn(nn.LayerNorm(6)), one=nn.Linear(6, 4))
    assert gains(sound(model, images(3, 5, 6), reason="the layout changes").apply()) == 1


def test_all_of_a_map_in_one_row() -> None:
    model = net(
        lambda self, x: self.one(self.norm(x).flatten(1)),
        norm=drawn(nn.GroupNorm(3, 6)), one=nn.Linear(6 * 12, 4),
    )  # fmt: skip
    assert gains(sound(model, images(2, 6, 3, 4)).apply()) == 0


def test_zero_padding_keeps_a_shift_but_not_a_scale() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.conv(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))

    kept = net(forward, norm=drawn(nn.LayerNorm(6)), conv=conv(6))
    assert gains(sound(kept, images(2, 6, 5, 5), reason="meets zero padding").apply()) == 1
    scaled = net(forward, norm=drawn(nn.LayerNorm(6, bias=False)), conv=conv(6))
    assert gains(sound(scaled, images(2, 6, 5, 5)).apply()) == 0


def other_axis(self: Any, x: Tensor) -> Tensor:
    return self.one(self.norm(x).transpose(1, 2))


def heads(self: Any, x: Tensor) -> Tensor:
    return self.one(self.norm(x).reshape(*x.shape[:2], 2, 5))


@pytest.mark.parametrize(
    ("forward", "reason"), [(other_axis, "along another axis"), (heads, "the layout changes")]
)
def test_what_moves_the_channels_keeps_it(forward: Any, reason: str) -> None:
    model = net(forward, norm=drawn(nn.LayerNorm(10)), one=nn.Linear(5, 4))
    done = sound(model, images(2, 5, 10), reason=reason)
    assert gains(done.apply()) == 1


def test_another_reader_of_a_view_keeps_it() -> None:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.norm(x).flatten(2).transpose(1, 2)
        return self.one(rows), torch.tanh(rows)

    model = net(forward, norm=drawn(nn.GroupNorm(2, 6)), one=nn.Linear(6, 4))
    done = sound(model, images(2, 6, 3, 4), reason="tanh reads it as well")
    assert gains(done.apply()) == 1
