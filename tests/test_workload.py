"""Counts against numbers worked out by hand, and a model that is never touched."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refold.errors import InputError
from refold.workload import Workload, workload_of


def test_convolutions_and_products_are_counted_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2),  # 8x8 -> 4x4
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(8 * 16, 5),
    ).eval()
    parameters = 8 * 2 * 9 + 8 + 8 + 8 + 8 * 16 * 5 + 5
    macs = 2 * (8 * 16 * 2 * 9 + 8 * 16 * 5)
    assert workload_of(model, torch.zeros(2, 4, 8, 8)) == Workload(parameters, macs)
    assert workload_of(model) == Workload(parameters, None)


def test_attention_is_counted_though_its_kernels_are_fused() -> None:
    tokens, width = 5, 16
    layer = nn.TransformerEncoderLayer(width, 2, 32, batch_first=True).eval()
    products = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * 32
    assert workload_of(layer, torch.zeros(1, tokens, width)).macs == products
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_shared_parameter_counts_once_and_runs_twice() -> None:
    layer = nn.Linear(6, 6, bias=False)
    assert workload_of(nn.Sequential(layer, layer), torch.zeros(1, 6)) == Workload(36, 72)


class _Stateful(nn.Module):
    """Keeps a constant outside its buffers, counts calls and caches a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3, bias=False)
        self.constant = torch.ones(3)
        self.register_buffer("calls", torch.zeros(()))
        self.cache: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.cache = self.linear(x * self.constant + torch.tensor([1.0, 2.0, 3.0]))
        return self.cache


class _DataDependent(_Stateful):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(x.sum()) > 0 else x


@pytest.mark.parametrize("kind", [_Stateful, _DataDependent])
@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_never_changed(kind: type[_Stateful], training: bool) -> None:
    model = nn.Sequential(kind(), nn.BatchNorm1d(3)).train(training)
    before = copy.deepcopy(model.state_dict())
    x = torch.ones(2, 3)
    assert workload_of(model, x).macs == 18
    assert model[0].cache is None
    assert model.training is training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(x, torch.ones(2, 3))


def test_several_inputs_and_in_place_calls() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.relu_(x) @ y

    x, y = -torch.ones(2, 3), torch.ones(3, 4)
    assert workload_of(Two(), (x, y)) == Workload(0, 24)
    assert torch.equal(x, -torch.ones(2, 3))


def test_an_input_that_does_not_fit_is_one_sentence() -> None:
    with pytest.raises(InputError, match=r"Conv2d cannot run .*\(1, 4, 8, 8\).*channels") as caught:
        workload_of(nn.Conv2d(3, 8, 3), torch.zeros(1, 4, 8, 8))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="has no argument 'x'"):
        workload_of(nn.Conv2d(3, 8, 3), {"x": 1})


def test_the_text_is_short() -> None:
    assert str(Workload(5_288_548, 401_200_000)) == "5.29 M parameters, 401.2 M multiply-adds"
    assert str(Workload(5_288_548, None)) == "5.29 M parameters"


def test_a_parameter_given_to_a_layer_is_an_input_like_others() -> None:
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.norm = nn.Parameter(torch.zeros(1, 4)), nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.norm(self.token)

    model = Token().eval()
    assert workload_of(model, torch.zeros(2, 4)) == Workload(12, 0)
    assert all(parameter.requires_grad for parameter in model.parameters())
