"""What the result of the main verb is: an ordinary module, with everything kept that must be."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from itertools import chain

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.traps import bits, conv, gap, images, live, net, norms, same_bits
from refold import plan, reparameterize, verify
from refold.errors import RefoldError
from zoo.live import enliven

Norm = nn.BatchNorm2d


class Branches(nn.Module):
    """A block with a training and a deploy form."""

    def __init__(self, channels: int = 4, **options) -> None:
        super().__init__()
        self.three = nn.Sequential(conv(channels, channels, **options), Norm(channels))
        self.one = nn.Sequential(conv(channels, channels, 1, **options), Norm(channels))
        self.same = Norm(channels)

    def forward(self, x):
        return F.relu(self.three(x) + self.one(x) + self.same(x))


class Network(nn.Module):
    """Stem, blocks in a container, head; timm's way of naming."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 4, stride=2), Norm(4), nn.ReLU())
        self.blocks = nn.Sequential(Branches(), nn.Identity(), Branches())
        self.head = nn.Linear(4, 5)

    def forward_features(self, x):
        return self.blocks(self.stem(x))

    def forward(self, x):
        return self.head(self.forward_features(x).mean((2, 3)))

    def reset_classifier(self, classes: int) -> None:
        self.head = nn.Linear(self.head.in_features, classes)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return live(Network())


# -- the same function, fewer layers


def test_every_norm_and_branch_is_gone(model: nn.Module) -> None:
    folded = reparameterize(model, images())
    assert norms(folded) == 0
    assert sum(isinstance(m, nn.Conv2d) for m in folded.modules()) == 3
    assert gap(model, folded, images()) <= 1e-9
    assert verify(model, folded, images())


def test_names_classes_and_methods_that_stay(model: nn.Module) -> None:
    folded = reparameterize(model, images())
    assert isinstance(folded, Network)
    assert [type(block) for block in folded.blocks][1] is nn.Identity
    assert len(folded.blocks) == 3
    assert isinstance(folded.blocks[2], Branches)
    assert len(folded.stem) == 3
    assert isinstance(folded.stem[0], nn.Conv2d)
    assert folded.head.weight.shape == model.head.weight.shape
    x = images()
    with torch.no_grad():
        wanted, got = model.forward_features(x), folded.forward_features(x)
    assert (wanted - got).abs().max() < 1e-12
    folded.reset_classifier(7)
    assert folded.double()(x).shape == (2, 7)


def test_other_sizes_than_the_example(model: nn.Module) -> None:
    folded = reparameterize(model, images())
    for shape in ((1, 3, 8, 8), (3, 3, 15, 21), (1, 3, 1, 1)):
        assert gap(model, folded, images(*shape)) <= 1e-9


def test_without_an_example(model: nn.Module) -> None:
    folded = reparameterize(model)
    assert norms(folded) == 0
    assert gap(model, folded, images()) <= 1e-9


def test_folding_again_changes_nothing(model: nn.Module) -> None:
    folded = reparameterize(model, images())
    assert not plan(folded, images()).steps


# -- the caller's model


@pytest.mark.parametrize("allow_growth", [False, True])
def test_model_is_bit_identical_afterwards(model: nn.Module, allow_growth: bool) -> None:
    before = bits(model)
    folded = reparameterize(model, images(), allow_growth=allow_growth)
    assert same_bits(before, bits(model))
    with torch.no_grad():
        for tensor in chain(folded.parameters(), folded.buffers()):
            tensor.fill_(7)
    assert same_bits(before, bits(model))


def test_the_comparison_of_bits_sees_a_change(model: nn.Module) -> None:
    before = bits(model)
    with torch.no_grad():
        model.head.bias.add_(0)
    assert not same_bits(before, bits(model))


def test_no_storage_is_shared(model: nn.Module) -> None:
    def storages(module: nn.Module) -> set[int]:
        tensors = chain(module.parameters(), module.buffers())
        return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}

    assert not storages(model) & storages(reparameterize(model, images()))


def test_inplace_changes_the_model_itself(model: nn.Module) -> None:
    reference = copy.deepcopy(model)
    folded = reparameterize(model, images(), inplace=True)
    assert folded is model
    assert norms(model) == 0
    assert gap(reference, model, images()) <= 1e-9


# -- what tensors keep


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_precision(model: nn.Module, dtype: torch.dtype) -> None:
    model, x = model.to(dtype), images().to(dtype)
    folded = reparameterize(model, x)
    assert {parameter.dtype for parameter in folded.parameters()} == {dtype}
    assert verify(model, folded, x)


def test_weights_are_rounded_once() -> None:
    model = live(nn.Sequential(conv(), Norm(4))).to(torch.bfloat16)
    layer, norm = copy.deepcopy(model).double()
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    exact = layer.weight * scale.reshape(-1, 1, 1, 1)
    folded = reparameterize(model, images().to(torch.bfloat16))
    assert torch.equal(folded[0].weight, exact.to(torch.bfloat16))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_depth_adds_up_roundings_and_keeps_no_norm(dtype: torch.dtype) -> None:
    """Each layer's rounding is right; forty of them move the answer by more than a fault may."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), Norm(8), nn.SiLU()) for _ in range(40)]
    x = torch.randn(2, 8, 7, 7).double()
    deep = enliven(nn.Sequential(*layers).double().eval(), (x,)).to(dtype)
    x = x.to(dtype)
    folded = reparameterize(deep, x)
    assert not any(isinstance(module, Norm) for module in folded.modules())
    wide = copy.deepcopy(deep).double()
    exact = reparameterize(wide, x.double())
    for rounded, weight in zip(folded.parameters(), exact.parameters(), strict=True):
        assert torch.equal(rounded, weight.to(dtype))


class Sine(nn.Module):
    """Makes a small difference three times as large, layer by layer."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(3 * x)


def test_what_rounding_alone_makes_large_undoes_no_step() -> None:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), Norm(8), Sine()) for _ in range(10)]
    x = torch.randn(2, 8, 7, 7).double()
    wild = enliven(nn.Sequential(*layers).double().eval(), (x,))
    single = copy.deepcopy(wild).float()
    folded = reparameterize(single, x.float())
    assert not any(isinstance(module, Norm) for module in folded.modules())
    with torch.no_grad():
        assert (single(x.float()) - folded(x.float())).abs().max() > 1e-3  # float32's rounding
    assert gap(wild, reparameterize(wild, x), x) <= 1e-9


def test_channels_last(model: nn.Module) -> None:
    folded = reparameterize(model.to(memory_format=torch.channels_last), images())
    weights = [m.weight for m in folded.modules() if isinstance(m, nn.Conv2d)]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


def test_device_without_data(model: nn.Module) -> None:
    folded = reparameterize(model.to("meta"), images().to("meta"))
    assert norms(folded) == 0
    assert {parameter.device.type for parameter in folded.parameters()} == {"meta"}


def test_meta_model_with_numbers() -> None:
    model = net(lambda self, x: self.b(self.c(x) * 2 - 1).relu() + x / 3, c=conv(3, 3), b=Norm(3))
    folded = reparameterize(live(model).to("meta"), images().to("meta"))
    assert norms(folded) == 0


def test_frozen_model_stays_frozen(model: nn.Module) -> None:
    folded = reparameterize(model.requires_grad_(False), images())
    assert not any(parameter.requires_grad for parameter in folded.parameters())


def test_frozen_part_stays_frozen(model: nn.Module) -> None:
    model.stem.requires_grad_(False)
    folded = reparameterize(model, images())
    assert not any(parameter.requires_grad for parameter in folded.stem.parameters())
    assert all(parameter.requires_grad for parameter in folded.blocks.parameters())


def test_modes_are_kept(model: nn.Module) -> None:
    assert not any(module.training for module in reparameterize(model, images()).modules())


# -- an ordinary module


def test_it_trains(model: nn.Module) -> None:
    folded = reparameterize(model, images()).train()
    before = [parameter.detach().clone() for parameter in folded.parameters()]
    optimiser = torch.optim.SGD(folded.parameters(), lr=0.1)
    folded(images()).square().mean().backward()
    assert all(parameter.grad is not None for parameter in folded.parameters())
    optimiser.step()
    pairs = zip(before, folded.parameters(), strict=True)
    assert all(not torch.equal(old, new) for old, new in pairs)


def test_gradient_of_the_input_is_the_same(model: nn.Module) -> None:
    folded = reparameterize(model, images())
    grads: list[Tensor] = []
    for module in (model, folded):
        x = images().requires_grad_()
        module(x).square().sum().backward()
        grads.append(x.grad)
    assert (grads[0] - grads[1]).abs().max() <= 1e-9 * grads[0].abs().max()


def test_copies_pickles_and_saves(model: nn.Module) -> None:
    folded = reparameterize(model, images())
    stored = io.BytesIO()
    torch.save(folded, stored)
    stored.seek(0)
    again = [
        copy.deepcopy(folded),
        pickle.loads(pickle.dumps(folded)),
        torch.load(stored, weights_only=False),
    ]
    assert all(gap(folded, one, images()) == 0 for one in again)
    assert all(type(one).__name__ == "Network" for one in again)


def test_state_dict_loads_into_another_folded_model(model: nn.Module) -> None:
    other = live(Network(), seed=5)
    one, two = reparameterize(model, images()), reparameterize(other, images())
    two.load_state_dict(one.state_dict(), strict=True)
    assert gap(one, two, images()) == 0


def test_it_exports(model: nn.Module) -> None:
    folded = reparameterize(model, images())
    exported = torch.export.export(folded, (images(),)).module()
    assert gap(folded, exported, images()) <= 1e-12
    assert gap(folded, torch.jit.trace(folded, images()), images()) <= 1e-12


@pytest.mark.parametrize("collects", [True, False])
def test_the_process_is_left_as_it_was(collects: bool) -> None:
    threads, collected = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(2)
    (gc.enable if collects else gc.disable)()
    try:
        reparameterize(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)).eval())
        with pytest.raises(RefoldError):
            reparameterize(nn.Sequential(nn.Conv2d(2, 2, 1)).eval(), torch.zeros(1, 9, 4, 4))
        assert (torch.get_num_threads(), gc.isenabled()) == (2, collects)
    finally:
        torch.set_num_threads(threads)
        (gc.enable if collected else gc.disable)()
