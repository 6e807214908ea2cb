"""Branches into networks that know nothing of them: the same function, and something to train."""

from __future__ import annotations

import copy
import logging
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from helpers.expanding import (
    BLOCKS,
    FAST,
    TOLERANCE,
    ZOO,
    answer,
    batch,
    check,
    error,
    network,
    train,
)
from helpers.nightly import some
from refold import blocks
from refold.account import Account
from refold.branches import expand, expand_plan
from refold.errors import InputError, RefusedError
from refold.graph.copies.held import storage_key
from zoo.live import enliven

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("block", some(BLOCKS, keep=4))
@pytest.mark.parametrize("label", some(FAST, keep=2))
def test_the_function_stays_and_every_branch_learns(label: str, block: str) -> None:
    check(label, block)


@pytest.mark.parametrize(
    "label", some(["resnet18", "timm:mobilenetv3_small_050"], keep=["timm:mobilenetv3_small_050"])
)
def test_networks_from_elsewhere(label: str) -> None:
    check(label, "acb")


@pytest.mark.zoo
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("label", ["resnet18", *(f"timm:{name}" for name in ZOO)])
def test_the_zoo(label: str, block: str) -> None:
    check(label, block)


@pytest.mark.parametrize("block", BLOCKS)
def test_more_than_one_network_has_room_for_every_block(block: str) -> None:
    assert all(len(expand_plan(network(label), block).steps) > 0 for label in FAST[:3])


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_names_geometry_and_modes_stay(ndim: int) -> None:
    model = copy.deepcopy(network(f"toy{ndim}d")).float().train()
    model.stem_bn.eval()
    wide = expand(model, "repvgg")
    assert [name for name, _ in wide.named_children()] == [
        "stem",
        "stem_bn",
        "body",
        "wide",
        "head",
    ]
    assert type(wide) is type(model)
    for name in ("stem", "body.0", "wide", "head"):
        conv, block = model.get_submodule(name), wide.get_submodule(name)
        for key in ("kernel_size", "stride", "dilation", "groups", "in_channels", "out_channels"):
            assert getattr(block.spec, key) == getattr(conv, key), (name, key)
        assert {tensor.dtype for tensor in block.parameters()} == {torch.float32}
    assert isinstance(wide.stem_bn, nn.Identity)
    assert isinstance(wide.body[1], nn.Identity)
    assert wide.training
    assert wide.stem.rbr_1x1.bn.training
    assert not wide.stem.rbr_dense.bn.training
    assert (wide.stem.rbr_1x1.bn.eps, wide.stem.rbr_1x1.bn.momentum) == (1e-3, 0.2)


def test_a_fused_norm_leaves_its_activation_at_its_name() -> None:
    model = network("timm:regnetx_002")
    wide = expand(model, "acb")
    assert type(wide.stem.bn) is nn.Sequential
    assert [name for name, _ in wide.stem.bn.named_children()] == ["drop", "act"]
    assert isinstance(wide.stem.bn.act, nn.ReLU)
    assert type(wide.stem.conv.square_bn) is nn.BatchNorm2d


def test_the_model_is_not_changed_and_shares_nothing() -> None:
    model = copy.deepcopy(network("toy2d"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for block in BLOCKS:
        wide = train(expand(model, block), batch("toy2d"))
        held = {storage_key(tensor) for tensor in wide.state_dict().values()}
        assert not held & {storage_key(tensor) for tensor in model.state_dict().values()}
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def reasons(account: Account) -> dict[str, str]:
    """Return why each convolution stays."""
    return {item.where: item.reason for item in account.kept}


def test_where_takes_patterns_and_functions() -> None:
    model = network("toy2d")

    def replaced(where: Any) -> tuple[str, ...]:
        return tuple(step.where for step in expand_plan(model, "acb", where=where).steps)

    assert replaced(None) == ("stem", "body.0", "wide", "head")
    assert replaced("body.*") == ("body.0",)
    assert replaced(["stem", "w*"]) == ("stem", "wide")
    assert replaced(lambda name, conv: conv.kernel_size == (1, 1)) == ("head",)
    assert reasons(expand_plan(model, "acb", where="stem"))["head"] == "`where` leaves it out"
    with pytest.raises(InputError, match=r"'layer9\.\*' matches no convolution"):
        replaced("layer9.*")


def test_blocks_by_class_partial_and_callable() -> None:
    model, x = network("toy2d"), batch("toy2d")
    inner = partial(blocks.DiverseBranchBlock, internal_channels=24)
    plenty = partial(blocks.MobileOneBlock, num_conv_branches=3)
    for block in (blocks.RepVGGBlock, inner, plenty):
        wide = expand(model, block)
        assert error(answer(model, x), answer(wide, x)) <= TOLERANCE
    assert len(wide.stem.rbr_conv) == 3

    def only_large(conv: Any) -> nn.Module:
        if conv.kernel_size == (1, 1):
            return conv
        shape = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
        return blocks.ACBlock(*shape, conv.dilation, conv.groups, dtype=conv.weight.dtype)

    plan = expand_plan(model, only_large)
    assert [step.where for step in plan.steps] == ["stem", "body.0", "wide"]
    assert reasons(plan)["head"] == "the callable returned it unchanged"
    with pytest.raises(InputError, match="there is no block 'nope'"):
        expand(model, "nope")
    with pytest.raises(InputError, match="block must be a name"):
        expand(model, 3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="block must make modules, got int"):
        expand(model, lambda conv: 3)  # type: ignore[arg-type,return-value]


class LowRank(nn.Module):
    """A convolution with a low-rank addend, as adapters have it: knows nothing of `adopt`."""

    def __init__(self, conv: nn.Conv2d, start: float) -> None:
        super().__init__()
        self.conv = conv
        self.down = nn.Conv2d(
            conv.in_channels, 2, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
            bias=False, dtype=conv.weight.dtype
        )  # fmt: skip
        self.up = nn.Conv2d(2, conv.out_channels, 1, bias=False, dtype=conv.weight.dtype)
        nn.init.constant_(self.up.weight, start)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.up(self.down(x))


def test_a_foreign_module_stands_before_the_norm_and_must_preserve() -> None:
    model, x = network("resnet18"), batch("resnet18")
    wide = expand(model, partial(_low_rank, start=0.0), where="layer1.*")
    assert isinstance(wide.layer1[0].conv1, LowRank)
    assert isinstance(wide.layer1[0].bn1, nn.BatchNorm2d)
    assert error(answer(model, x), answer(wide, x)) <= TOLERANCE
    with pytest.raises(RefusedError, match=r"layer1\.0\.conv1: the block does not compute"):
        expand(model, partial(_low_rank, start=0.1), where="layer1.*")
    expand(model, partial(_low_rank, start=0.1), where="layer1.*", preserve=False)


def _low_rank(conv: nn.Conv2d, start: float) -> nn.Module:
    return LowRank(conv, start)


@pytest.mark.parametrize("block", BLOCKS)
def test_without_preserve_the_branches_start_as_the_block_does(block: str) -> None:
    model, x = network("toy2d"), batch("toy2d")
    wide = expand(model, block, preserve=False)
    assert error(answer(model, x), answer(wide, x)) > 1e-6


def test_an_expanded_network_is_refused() -> None:
    wide = expand(network("toy2d"), "acb", where="stem")
    for again in (wide, copy.deepcopy(wide), pickle.loads(pickle.dumps(wide))):
        with pytest.raises(RefusedError, match="already expanded: stem is a ACBlock"):
            expand(again, "dbb")


class Odd(nn.Module):
    """Everything that must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.tied = nn.Conv2d(4, 4, 3, padding=1)
        self.also = nn.Conv2d(4, 4, 3, padding=1)
        self.also.weight = self.tied.weight
        self.hooked = nn.Conv2d(4, 4, 3, padding=1)
        self.hooked.register_forward_hook(lambda module, args, output: None)
        self.normed = parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1))
        self.read = nn.Conv2d(4, 4, 3, padding=1)
        self.even = nn.Conv2d(4, 4, 2)
        self.bare = nn.Conv2d(4, 4, 3, bias=False)
        self.reflect = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.shared_bn = nn.BatchNorm2d(4)
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.free = nn.Conv2d(4, 4, 3)
        self.unused = nn.Conv2d(4, 4, 3)
        self.block = blocks.ACBlock(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.also(self.tied(self.twice(self.twice(x))))
        x = self.normed(self.hooked(x))
        x = self.read(x) * self.read.weight.mean()
        x = self.reflect(self.bare(self.even(x)))
        x = self.shared_bn(self.one(x)) + self.shared_bn(self.two(x))
        return self.block(self.free(x))


def test_what_others_see_stays_with_a_reason(caplog: pytest.LogCaptureFixture) -> None:
    model = Odd().eval()
    plan = expand_plan(model, "dbb")
    assert [step.where for step in plan.steps] == ["free"]
    wanted = {
        "twice": "twice is called more than once",
        "tied": "a parameter of tied is tied to also.weight",
        "also": "a parameter of also is tied to tied.weight",
        "hooked": "hooks",
        "normed": "parametrized",
        "read": "other code reads the tensors of read",
        "even": "use an odd kernel_size",
        "bare": "neither a norm nor a bias",
        "reflect": "takes no padding_mode",
        "one": "its norm cannot move: shared_bn is called more than once",
        "two": "its norm cannot move: shared_bn is called more than once",
        "unused": "no code that could be traced calls it",
        "block.square_conv": "it is part of a ACBlock",
    }
    for name, reason in wanted.items():
        assert reason in reasons(plan)[name], name
    with caplog.at_level(logging.INFO, logger="refold.branches.expanding"):
        wide = expand(model, "dbb")
    assert "twice stays: twice is called more than once" in caplog.text
    x = torch.randn(2, 4, 16, 16)
    torch.testing.assert_close(wide(x), model(x))
    assert plan.summary().startswith("1 expanded, ")


def test_nothing_to_replace_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    wide = expand(model, "acb")
    assert "no convolution became a block" in caplog.text
    assert torch.equal(wide[0].weight, model[0].weight)


def test_transposed_convolutions() -> None:
    torch.manual_seed(0)
    up = nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2)
    model = nn.Sequential(up, nn.BatchNorm2d(4)).double()
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    model = enliven(model, (x,)).eval()
    for block in ("acb", "repvgg", "mobileone", "qarepvgg", "orepa"):
        wide = expand(model, block)
        assert isinstance(wide[0], blocks.BranchedBlock)
        for training in (False, True):
            found = answer(wide, x, training=training)
            assert error(answer(model, x, training=training), found) <= TOLERANCE
    assert "takes no transposed" in reasons(expand_plan(model, "dbb"))["0"]


def test_low_precision_and_layout_are_kept() -> None:
    model = copy.deepcopy(network("resnet18")).to(torch.bfloat16)
    model = model.to(memory_format=torch.channels_last)
    wide = expand(model, "acb", where="layer1.*")
    flat = wide.layer1[0].conv1.hor_conv.weight
    assert flat.dtype is torch.bfloat16
    assert flat.is_contiguous(memory_format=torch.channels_last)
