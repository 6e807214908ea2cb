"""Weights that are computed from weights: computed once, stored, and folded on."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

import refold
from helpers.traps import gap, images, live, net

KINDS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": parametrizations.weight_norm,
    "older weight_norm": nn.utils.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "older spectral_norm": nn.utils.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


MASKS: dict[str, Callable[[nn.Module], object]] = {
    "unstructured": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
    "structured": lambda layer: prune.ln_structured(layer, "weight", 0.3, n=2, dim=0),
    "of the bias": lambda layer: prune.random_unstructured(layer, "bias", 0.3),
    "twice": lambda layer: [prune.l1_unstructured(layer, "weight", 0.3) for _ in range(2)],
}


@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_of_torch_is_gone_and_the_next_norm_folds(mask: str) -> None:
    """The oracle is the masked network, in float64."""
    torch.manual_seed(0)  # of some biases the mask takes what changes nothing
    layer = nn.Conv2d(4, 6, 3, padding=1)
    MASKS[mask](layer)
    model = live(nn.Sequential(layer, nn.BatchNorm2d(6), nn.ReLU()))
    folded = refold.reparameterize(model, image(2))
    assert [type(part) for part in folded] == [nn.Conv2d, nn.Identity, nn.ReLU]
    assert list(folded.state_dict()) == ["0.weight", "0.bias"]
    assert gap(folded, model, image(2)) <= 1e-9
    unmasked = live(nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()))
    original = {name.removesuffix("_orig"): value for name, value in model[0].named_parameters()}
    unmasked[0].load_state_dict(original)
    unmasked[1].load_state_dict(model[1].state_dict())
    assert gap(unmasked, model, image(2)) > 1e-3  # the mask does matter


def image(rank: int, channels: int = 4) -> torch.Tensor:
    noise = torch.Generator().manual_seed(rank)
    return torch.randn(2, channels, *range(7, 7 + rank), dtype=torch.float64, generator=noise)


def steps(model: nn.Module, x: Any) -> list[str]:
    return [step.detail for step in refold.plan(model, x).steps]


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_norm_of_the_weight_is_gone_and_the_next_norm_folds(kind: str, rank: int) -> None:
    norm = KINDS[kind]
    parts = [
        norm(CONVS[rank](4, 6, 3, stride=2, padding=1, groups=2)),
        NORMS[rank](6),
        nn.LeakyReLU(0.1),
        norm(TRANSPOSED[rank](6, 4, 4, 2)),
    ]
    model = live(nn.Sequential(*parts))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded = refold.reparameterize(model, image(rank))
    for x in (image(rank), 30 * image(rank), image(rank)[:1, :, 1:]):
        torch.testing.assert_close(folded(x), model(x), rtol=1e-9, atol=1e-10)
    assert [type(part) for part in folded] == [
        CONVS[rank], nn.Identity, nn.LeakyReLU, TRANSPOSED[rank]
    ]  # fmt: skip
    assert list(folded.state_dict()) == ["0.weight", "0.bias", "3.weight", "3.bias"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert len([text for text in steps(model, image(rank)) if "computed once by" in text]) == 2


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_standardised_weights_become_layers(groups: int) -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            flat = self.weight.flatten(1)
            flat = (flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1e-5)
            weight = flat.view_as(self.weight)
            return F.conv2d(x, weight, self.bias, self.stride, self.padding, 1, self.groups)

    parts = [Standardised(4, 8, 3, 2, 1, groups=groups), nn.GroupNorm(2, 8), Standardised(8, 4, 1)]
    model = live(nn.Sequential(*parts))
    folded = refold.reparameterize(model, image(2))
    gain = "2.reparam_conv"  # which takes in that of the group norm
    assert steps(model, image(2)) == ["weight computed once"] * 2 + [gain]
    weights = [part.weight for part in folded.modules() if type(part) is nn.Conv2d]
    assert len(weights) == 2
    assert not torch.allclose(weights[0], model[0].weight)  # the control: it is another weight
    for x in (image(2), image(2)[:, :, 1:, 2:]):
        torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


class Noisy(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + torch.rand_like(weight)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return weight * self.calls


def test_ones_own_parametrization_is_stored() -> None:
    conv = nn.Conv2d(4, 4, 3)
    parametrize.register_parametrization(conv, "weight", Doubled())
    parametrize.register_parametrization(conv, "bias", Doubled())
    model = live(nn.Sequential(conv, nn.BatchNorm2d(4)))
    folded = refold.reparameterize(model, image(2))
    assert type(folded[0]) is nn.Conv2d
    assert isinstance(folded[1], nn.Identity)
    torch.testing.assert_close(folded(image(2)), model(image(2)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", [Noisy, Counting])
def test_what_is_another_weight_at_every_call_stays(make: type[nn.Module]) -> None:
    conv = nn.Conv2d(4, 4, 3)
    parametrize.register_parametrization(conv, "weight", make())
    model = live(nn.Sequential(conv, nn.BatchNorm2d(4)))
    folded = refold.reparameterize(model, image(2))
    assert parametrize.is_parametrized(folded[0])
    assert isinstance(folded[1], nn.BatchNorm2d)


@pytest.mark.parametrize("example", [image(2), None])
def test_code_that_looks_at_how_its_weight_is_computed_keeps_it(example: Any) -> None:
    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = parametrizations.weight_norm(nn.Conv2d(4, 4, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x) * self.conv.parametrizations.weight.original0.mean()

    model = live(Looking())
    folded = refold.reparameterize(model, example)
    assert torch.equal(folded(image(2)), model(image(2)))


def test_one_layer_under_two_names_and_frozen_weights() -> None:
    conv = parametrizations.weight_norm(nn.Conv2d(4, 4, 1))
    conv.requires_grad_(False)
    model = live(nn.Sequential(conv, nn.ReLU(), conv))
    folded = refold.reparameterize(model, image(2))
    assert folded[0] is folded[2]
    assert not folded[0].weight.requires_grad
    assert torch.equal(folded(image(2)), model(image(2)))


# what is computed from buffers alone


class Biased(nn.Module):
    """A table of biases that is read by a view of an index."""

    def __init__(self, *, persistent: bool = True) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 4))
        index = torch.randperm(9).reshape(3, 3)
        self.register_buffer("index", index, persistent=persistent)
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = self.table[self.index.view(-1)].view(3, 3, 4).permute(2, 0, 1)
        return (self.norm(self.conv(x)) + bias).relu()


@pytest.mark.parametrize("persistent", [True, False])
def test_a_view_of_a_buffer_is_stored(persistent: bool) -> None:
    model = live(nn.Sequential(Biased(persistent=persistent), nn.Tanh()))
    plan = refold.plan(model, images(2, 4, 3, 3))
    folded = plan.apply()
    assert [step.detail for step in plan.groups["parametrized"]] == ["view of a buffer"]
    assert gap(model, folded, images(3, 4, 3, 3)) <= 1e-9
    names = {name: buffer.shape for name, buffer in folded.named_buffers()}
    assert names == {"0.constant": (9,)}
    assert ("0.constant" in folded.state_dict()) == persistent
    assert "0.table" in folded.state_dict()


def test_a_buffer_is_not_blown_up() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return (x * self.scale.expand(4, 6, 6)).tanh()

    model = net(forward)
    model.register_buffer("scale", torch.randn(4, 1, 1))
    assert not refold.plan(live(model), images(2, 4, 6, 6)).groups["parametrized"]


def test_a_buffer_that_changes_is_read_anew() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        self.scale.add_(1)
        return (self.conv(x) * self.scale.view(2, 2, 1).mean()).tanh()

    model = net(forward, conv=nn.Conv2d(4, 4, 1))
    model.register_buffer("scale", torch.randn(4, 1))
    assert not refold.plan(live(model), images(2, 4, 6, 6)).groups["parametrized"]


class Scaled(nn.Module):
    """Reads a statistic of its norm and calls the norm as well, as training for int8 does."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        deviation = torch.sqrt(self.norm.running_var + self.norm.eps)
        return self.norm((x / deviation.reshape(1, -1, 1, 1)).tanh())


def test_a_buffer_of_a_layer_that_is_called_stays() -> None:
    model = live(Scaled().eval())
    folded = refold.reparameterize(model, images(2, 3, 6, 6), check=False)
    assert "constant" in dict(folded.named_buffers())
    assert gap(model, folded, images(3, 3, 5, 6)) <= 1e-9


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_whose_weight_was_computed_goes_into_a_file(kind: str) -> None:
    """Torch leaves a local function on it, which pickle refuses."""
    model = live(nn.Sequential(KINDS[kind](nn.Conv2d(4, 6, 3)), nn.ReLU()))
    folded = refold.reparameterize(model, image(2))
    assert gap(pickle.loads(pickle.dumps(folded)), model, image(2)) <= 1e-9
    assert list(folded.state_dict()) == ["0.weight", "0.bias"]
    assert folded.load_state_dict(folded.state_dict()).missing_keys == []


CUTS: dict[str, Callable[[torch.Tensor], tuple[torch.Tensor, ...]]] = {
    "slices": lambda w: (w[:4], w[4:]),
    "split": lambda w: w.split([4, 4]),
    "steps": lambda w: (w[::2].contiguous(), w[1::2]),
}


@pytest.mark.parametrize("cut", CUTS)
def test_slices_of_one_weight_are_weights_of_their_own(cut: str) -> None:
    """An octave convolution: every path has its part of one stored kernel."""

    def forward(self: Any, x: torch.Tensor) -> Any:
        fine, coarse = CUTS[cut](self.base.weight)
        low, high = CUTS[cut](self.base.bias)
        pooled = F.avg_pool2d(x, 2)
        return self.one(F.conv2d(x, fine, low)), self.two(F.conv2d(pooled, coarse, high, padding=1))

    parts = {"base": nn.Conv2d(4, 8, 3), "one": nn.BatchNorm2d(4), "two": nn.BatchNorm2d(4)}
    model = live(net(forward, **parts))
    folded = refold.reparameterize(model, images(2, 4, 8, 8))
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    size = [sum(p.numel() for p in one.parameters()) for one in (folded, model.base)]
    assert size[0] == size[1]
    assert gap(model, folded, images(1, 4, 7, 11)) <= 1e-9


OVERLAPS: dict[str, Callable[[torch.Tensor], tuple[torch.Tensor, ...]]] = {
    "a row twice": lambda w: (w[:5], w[4:]),
    "in another order": lambda w: (w[:4], w.transpose(0, 1)[:4].transpose(0, 1)),
    "all of it": lambda w: (w[:4], w),
    "rows by number": lambda w: (w[[0, 1, 2]], w[[2, 3]]),
}


@pytest.mark.parametrize("cut", OVERLAPS)
def test_slices_with_numbers_in_common_stay(cut: str) -> None:
    """One training step changes both; two weights would come apart."""

    def forward(self: Any, x: torch.Tensor) -> Any:
        one, other = OVERLAPS[cut](self.base.weight)
        return F.conv2d(x, one).mul(2).relu(), F.conv2d(x.relu(), other).mul(3).relu()

    model = live(net(forward, base=nn.Conv2d(4, 8, 3, bias=False)))
    assert "is read more than once" in str(refold.plan(model, images(2, 4, 8, 8)))
