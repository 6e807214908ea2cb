"""Adapters of the PEFT library: merged, the network equals the adapted one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.traps import gap, images
from refold import plan

pytestmark = pytest.mark.filterwarnings("ignore")


def library() -> Any:
    """Import it where a test runs, not where all are collected: it takes seconds."""
    return pytest.importorskip("peft")


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x)))


class Maps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(6, 8, 3, 2, 1), nn.Conv2d(8, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x)))


def adapted(model: nn.Module, *, more: int = 0, **options: Any) -> nn.Module:
    """Return a model with adapters on both layers, none of them zero."""
    torch.manual_seed(0)
    targets = {"target_modules": ["one", "two"], "lora_dropout": 0.1}
    peft = library()
    made = peft.get_peft_model(model, peft.LoraConfig(r=2, **targets, **options))
    names = ["default", *map(str, range(more))]
    for name in names[1:]:
        made.add_adapter(name, peft.LoraConfig(r=3, **targets))
    made.base_model.set_adapter(names)
    for parameter in made.parameters():
        parameter.data.normal_(std=0.5)
    return made.double().eval()


@pytest.mark.parametrize("make", [Rows, Maps])
@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True}, {"lora_bias": True}, {"use_dora": True}, {"more": 2}],
    ids=["lora", "rslora", "bias", "dora", "three"],
)
def test_adapters_go_into_their_layers(make: type[nn.Module], options: dict[str, Any]) -> None:
    if make is Rows and options.get("lora_bias"):
        pytest.skip("its second layer has no bias to adapt")
    model = adapted(make(), **options)
    x = images(3, 6, *((9, 9) if make is Maps else ()))
    done = plan(model, x)
    merged = done.apply()
    assert gap(model, merged, x) <= 1e-9
    assert not done.kept
    names = {name for name, module in merged.named_modules() if isinstance(module, LAYERS)}
    assert len(names) == 2


LAYERS = (nn.Linear, nn.Conv2d)


def test_disabled_adapters_are_left_out() -> None:
    model = adapted(Rows())
    model.disable_adapter_layers()  # type: ignore[operator]
    x = images(3, 6)
    assert gap(model, plan(model, x).apply(), x) <= 1e-9


def test_a_model_without_a_task_takes_its_arguments_by_name() -> None:
    """Its own forward says `*args, **kwargs`: whatever is named is handed on."""
    model, x = adapted(Rows()), images(3, 6)
    found = plan(model, {"x": x})
    merged = found.apply()
    assert sum(isinstance(module, LAYERS) for module in merged.modules()) == 2
    assert gap(model, merged, x) <= 1e-9
    assert torch.allclose(merged(x=x), model(x=x), rtol=1e-9)
