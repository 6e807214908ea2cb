"""Expanded, trained and collapsed: the stock architecture again, with what was learned."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import refold
from branches.test_expanding import LowRank
from helpers.expanding import (
    BLOCKS,
    FAST,
    NETS,
    TOLERANCE,
    ZOO,
    answer,
    batch,
    error,
    network,
    train,
)
from helpers.nightly import some
from refold.branches import collapse, expand, expand_plan
from refold.errors import InputError, RefusedError
from zoo.live import enliven

pytestmark = pytest.mark.slow


def stock(label: str) -> nn.Module:
    """Return the architecture with other weights."""
    torch.manual_seed(7)
    return NETS[label][0]().double().eval()


def check(label: str, block: str) -> None:
    """Expand, train, collapse and load strictly into the stock architecture."""
    model, x = network(label), batch(label)
    trained = train(expand(model, block), x)
    plain = collapse(trained)
    assert [type(part) for part in plain.modules()] == [type(part) for part in model.modules()]
    fresh = stock(label)
    fresh.load_state_dict(plain.state_dict(), strict=True)
    wanted = answer(trained, x)
    assert error(wanted, answer(fresh, x)) <= TOLERANCE
    assert error(wanted, answer(plain, x)) <= TOLERANCE
    assert error(wanted, answer(model, x)) > 1e-8  # it did learn


@pytest.mark.parametrize("block", some(BLOCKS, keep=4))
@pytest.mark.parametrize("label", some(FAST, keep=2))
def test_the_stock_architecture_takes_what_was_learned(label: str, block: str) -> None:
    check(label, block)


@pytest.mark.parametrize("label", some(["resnet18", "timm:mobilenetv3_small_050"], keep=1))
def test_networks_from_elsewhere(label: str) -> None:
    check(label, "repvgg")


@pytest.mark.zoo
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("label", ["resnet18", *(f"timm:{name}" for name in ZOO)])
def test_the_zoo(label: str, block: str) -> None:
    if not expand_plan(network(label), block).steps:
        pytest.skip("no convolution suits")
    check(label, block)


@pytest.mark.parametrize("block", some(BLOCKS, keep=3))
def test_untrained_it_gives_the_very_numbers_back(block: str) -> None:
    model = network("resnet18")
    plain = collapse(expand(model, block, where=["conv1", "layer1.*", "layer2.0.*"]))
    wanted, found = model.state_dict(), plain.state_dict()
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-12)


def in_memory(model: nn.Module) -> nn.Module:
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


def loaded(model: nn.Module) -> nn.Module:
    """Return a freshly expanded network of other weights, with this one's state loaded."""
    fresh = expand(stock("toy2d"), "dbb")
    fresh.load_state_dict(model.state_dict(), strict=True)
    return fresh


@pytest.mark.parametrize(
    "carry",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), in_memory, loaded],
    ids=["deepcopy", "pickle", "torch.save", "state_dict"],
)
def test_the_memory_survives(carry: Callable[[nn.Module], nn.Module]) -> None:
    x = batch("toy2d")
    trained = train(expand(network("toy2d"), "dbb"), x)
    plain = collapse(carry(trained))
    fresh = stock("toy2d")
    fresh.load_state_dict(plain.state_dict(), strict=True)
    assert error(answer(trained, x), answer(fresh, x)) <= TOLERANCE


def test_inside_another_network_and_as_a_part_of_one() -> None:
    x = batch("toy2d")
    trained = train(expand(network("toy2d"), "acb"), x)
    outer = collapse(nn.Sequential(trained, nn.ReLU()))
    assert error(answer(trained, x).relu(), answer(outer, x)) <= TOLERANCE
    part = collapse(trained.body)
    y = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    assert error(answer(trained.body, y), answer(part, y)) <= TOLERANCE
    with pytest.raises(RefusedError, match=r"^0: its norm belongs at 1, which is not in the model"):
        collapse(trained.body[:1])
    with pytest.raises(RefusedError, match="the model is one block"):
        collapse(trained.stem)


@pytest.mark.parametrize("block", some(BLOCKS, keep=3))
def test_after_the_branches_are_folded(block: str) -> None:
    x = batch("toy2d")
    trained = train(
        expand(
            network("toy2d"), block, where=["stem", "wide", "head"][: 1 + 2 * (block != "dilated")]
        ),
        x,
    )
    deployed = copy.deepcopy(trained)
    deployed.stem.switch_to_deploy()
    for model in (deployed, expand(stock("toy2d"), block)):
        plain = collapse(model)
        fresh = stock("toy2d")
        fresh.load_state_dict(plain.state_dict(), strict=True)
        assert error(answer(model, x), answer(fresh, x)) <= TOLERANCE
    folded = refold.reparameterize(trained, x)
    assert error(answer(trained, x), answer(folded, x)) <= TOLERANCE


def test_the_model_is_not_changed_and_modes_are_kept() -> None:
    trained = train(expand(network("toy2d"), "dbb"), batch("toy2d")).train()
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    plain = collapse(trained, batch("toy2d"), calibration=[batch("toy2d", 8)])
    after = trained.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(part.training for part in [*trained.modules(), *plain.modules()])
    assert collapse(trained.eval()).stem_bn.training is False


TINY = torch.tensor([0.0, 1e-30, -1e-9])


@pytest.mark.parametrize("block", ["acb", "orepa", "qarepvgg"])
def test_a_scale_of_zero_holds_what_the_branches_learn(block: str) -> None:
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    model = enliven(model.double(), (x,)).eval()
    with torch.no_grad():
        model[1].weight[:3] = TINY
    trained = train(expand(model, block), x)
    with torch.no_grad():
        trained[0].get_submodule(trained[0].main[1]).weight[:3] = TINY
    plain = collapse(trained)
    assert plain.state_dict().keys() == model.state_dict().keys()
    assert error(answer(trained, x), answer(plain, x)) <= TOLERANCE
    assert plain[0].weight.abs().max() < 1e4


@pytest.mark.parametrize("deployed", [False, True])
@pytest.mark.parametrize("options", [{"affine": False}, {"bias": False}], ids=str)
@pytest.mark.parametrize("block", ["acb", "orepa", "qarepvgg"])
def test_norms_without_scale_or_shift(block: str, options: dict[str, bool], deployed: bool) -> None:
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, **options), nn.ReLU())
    model = enliven(model.double(), (x,)).eval()
    trained = train(expand(model, block), x)
    if deployed:
        trained[0].switch_to_deploy()
    plain = collapse(trained, calibration=[x])
    fresh = copy.deepcopy(model)
    fresh.load_state_dict(plain.state_dict(), strict=True)
    assert error(answer(trained, x), answer(fresh, x)) <= TOLERANCE


@pytest.mark.parametrize("label", ["toy1d", "toy2d", "toy3d"])
def test_calibration_measures_and_keeps_the_function(label: str) -> None:
    x, data = batch(label), [batch(label, 4), (batch(label, 6),)]
    trained = train(expand(network(label), "repvgg"), x)
    plain = collapse(trained, calibration=data)
    assert error(answer(trained, x), answer(plain, x)) <= TOLERANCE
    seen: list[Tensor] = []
    handle = plain.stem_bn.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for item in data:
        answer_in_place(plain, item[0] if isinstance(item, tuple) else item)
    handle.remove()
    values = torch.cat(seen).transpose(0, 1).flatten(1)
    torch.testing.assert_close(plain.stem_bn.running_mean, values.mean(1))
    torch.testing.assert_close(plain.stem_bn.running_var, values.var(1))
    assert not torch.allclose(collapse(trained).stem_bn.running_var, values.var(1))
    with pytest.raises(InputError, match="calibration has no inputs"):
        collapse(trained, calibration=[])


def answer_in_place(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        model(x)


def test_a_foreign_module_gives_its_bias_to_the_norm_after_it() -> None:
    class Biased(LowRank):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.shift[:, None, None]

    def made(conv: Any) -> nn.Module:
        block = Biased(conv, 0.1)
        block.shift = nn.Parameter(torch.randn(conv.out_channels, dtype=torch.float64))
        return block

    model, x = network("resnet18"), batch("resnet18")
    wide = expand(model, made, where="layer1.*", preserve=False)
    plain = collapse(wide)
    fresh = stock("resnet18")
    fresh.load_state_dict(plain.state_dict(), strict=True)
    assert error(answer(wide, x), answer(fresh, x)) <= TOLERANCE


def test_low_precision_stays_and_what_does_not_fit_is_refused() -> None:
    trained = train(expand(network("toy2d"), "acb"), batch("toy2d")).to(torch.bfloat16)
    plain = collapse(trained)
    assert {p.dtype for p in plain.parameters()} == {torch.bfloat16}
    half = copy.deepcopy(trained).to(torch.float16)
    with torch.no_grad():
        half.head.square_conv.weight.fill_(6e4)
        half.head.hor_conv.weight.fill_(6e4)
        half.head.hor_bn.weight.fill_(1)
    with pytest.raises(RefusedError, match="head: a value of the collapsed layers does not fit"):
        collapse(half)


def test_what_is_not_expanded_is_refused() -> None:
    with pytest.raises(RefusedError, match="nothing to collapse"):
        collapse(network("toy2d"))
    with pytest.raises(InputError, match=r"expected a torch\.nn\.Module"):
        collapse(3)  # type: ignore[arg-type]


def test_a_bias_without_a_place_and_a_block_that_is_none_are_refused() -> None:
    x = batch("vgg")
    wide = expand(network("vgg"), "qarepvgg")
    wide[5].rbr_dense.bn = nn.BatchNorm2d(4).double()
    nn.init.ones_(wide[5].rbr_dense.bn.bias)
    with pytest.raises(RefusedError, match="5: it now adds a bias"):
        collapse(wide.eval())
    wide[5].rbr_dense.bn = nn.ReLU()
    with pytest.raises(RefusedError, match="5: "):
        collapse(wide)
    assert error(answer(network("vgg"), x), answer(expand(network("vgg"), "qarepvgg"), x)) < 1e-9
