"""RMNet's block: exact over kernels, strides and shares of reserved channels; what it hands on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import refold
from blocks.cells import enliven, error
from refold.blocks import RepVGGBlock, RMBlock
from refold.errors import InputError

TOLERANCE = 1e-12


def block(*arguments: Any, **options: Any) -> tuple[RMBlock, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = RMBlock(*arguments, dtype=torch.float64, **options)
    enliven(made, generator)
    ndim = len(made.spec.kernel_size)
    size = (2, made.spec.in_channels, *range(8, 8 + ndim))
    return made, torch.randn(size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kernel", [1, 3, (3, 5)])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("reserved", [0, 1, 5])
def test_it_folds_into_one_convolution(kernel: Any, padding: int, reserved: int) -> None:
    made, x = block(6, 6, kernel, 1, padding, reserved=reserved)
    with torch.no_grad():
        wanted = made(x)
        plain = made.fuse()
        assert error(wanted, plain(x)) < TOLERANCE
    assert list(plain.state_dict()) == ["reparam_conv.weight", "reparam_conv.bias"]


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((4, 6, 3, 2, 1), {}),
        ((6, 6, 3, 1, 1, 1, 2), {}),
        ((6, 6, 3, 1, 2, 2), {"reserved": 2}),
        ((6, 6, 3, 1, 1), {"reserved": 2, "identity": False}),
        ((6, 6, 3, 1, 1), {"reserved": 2, "ndim": 1}),
        ((6, 6, 3, 1, 1), {"reserved": 2, "se": True, "activation": nn.Hardswish}),
    ],
)
def test_other_forms_fold_too(arguments: Any, options: dict[str, Any]) -> None:
    made, x = block(*arguments, **options)
    with torch.no_grad():
        wanted = made(x)
        engine = refold.reparameterize(made, x, allow_growth=True)
        assert error(wanted, engine(x)) < TOLERANCE
        assert error(wanted, made.fuse()(x)) < TOLERANCE
    deployed = RMBlock(*arguments, **options, deploy=True, dtype=torch.float64).eval()
    deployed.load_state_dict(engine.state_dict(), strict=True)
    assert error(engine(x), deployed(x)) < TOLERANCE


def test_without_reserved_channels_it_is_repvggs() -> None:
    made, x = block(6, 6, 3, 1, 1)
    other = RepVGGBlock(6, 6, 3, padding=1, dtype=torch.float64).eval()
    other.load_state_dict(dict(zip(other.state_dict(), made.state_dict().values(), strict=True)))
    assert error(other(x), made(x)) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_reserved_channels_are_handed_on_exactly(dtype: torch.dtype) -> None:
    """A published conversion rounds here: norms of variance 1 that leave `eps` out."""
    made, x = block(6, 6, 3, 1, 1, reserved=2, se=True)
    plain = refold.reparameterize(made.to(dtype), x.to(dtype), allow_growth=True)
    conv = plain.get_submodule("reparam_conv")
    assert isinstance(conv, nn.Conv2d)
    centre = torch.zeros(2, 6, 3, 3, dtype=dtype)
    centre[0, 0, 1, 1] = centre[1, 1, 1, 1] = 1
    assert torch.equal(conv.weight[:2], centre)
    assert conv.bias is not None
    assert not conv.bias[:2].any()
    with torch.no_grad():
        values = plain(x.to(dtype))
    # A direct convolution with these weights rounds nothing; other algorithms may, a little.
    assert error(x[:, :2].to(dtype).relu(), values[:, :2]) <= 8 * torch.finfo(dtype).eps


def test_its_gates_pass_reserved_channels_and_read_them() -> None:
    made, x = block(6, 6, 3, 1, 1, reserved=2, se=True)
    assert made.se is not None
    assert [name for name in made.state_dict() if name.startswith("se")] == [
        "se.down.weight", "se.down.bias", "se.up.weight", "se.up.bias",
    ]  # fmt: skip
    assert made.se.up.weight.shape[0] == 4
    assert made.se.down.weight.shape[1] == 6
    with torch.no_grad():
        mean = x.mean((2, 3), keepdim=True)
        gate = made.se.up(made.se.down(mean).relu()).sigmoid()
        wanted = torch.cat([x[:, :2], x[:, 2:] * gate], 1)
        assert error(wanted, made.se(x)) < 1e-15
        plain = refold.reparameterize(made, x, allow_growth=True)
    assert not plain.get_submodule("se.up").weight[:2].any()
    assert plain.get_submodule("se.up").bias[:2].tolist() == [100, 100]


@pytest.mark.parametrize(
    ("arguments", "reserved", "said"),
    [
        ((6, 6, 3, 1, 1), 6, "less than the 6 output channels, got 6"),
        ((6, 6, 3, 1, 1), -1, "at least 0"),
        ((4, 6, 3, 1, 1), 2, "where the shape is kept, without groups; got 4 -> 6 channels"),
        ((6, 6, 3, 2, 1), 2, r"stride \(2, 2\)"),
        ((6, 6, 3, 1, 1, 1, 2), 2, "groups 2: give reserved=0"),
    ],
)
def test_what_cannot_be_reserved_is_named(arguments: Any, reserved: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        RMBlock(*arguments, reserved=reserved)


def test_expand_knows_it_by_name() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)).double()
    x = torch.randn(1, 3, 7, 7, dtype=torch.float64)
    wide = refold.expand(enliven(net, torch.Generator().manual_seed(1)), "rm").eval()
    assert isinstance(wide[0], RMBlock)
    assert error(net(x), wide(x)) < TOLERANCE  # its convolutions are wider
    with torch.no_grad():
        assert error(net(x), refold.reparameterize(wide, x)(x)) < TOLERANCE
