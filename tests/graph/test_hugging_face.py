"""Bare Hugging Face models: folded whole, with results, flags and sizes as before."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import refold
from helpers.traps import images, live

transformers = pytest.importorskip("transformers")


def resnet() -> nn.Module:
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    config = transformers.ResNetConfig(**sizes, layer_type="basic")
    return transformers.ResNetForImageClassification(config)


def mobilevit() -> nn.Module:
    config = transformers.MobileViTV2Config(
        image_size=64, width_multiplier=0.25, n_attn_blocks=[1, 1, 1]
    )
    return transformers.MobileViTV2Model(config)


def norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._NormBase) for m in model.modules())


def flat(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [tensor for item in items for tensor in flat(item)]  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("make", [resnet, mobilevit])
def test_a_bare_model_folds_whole(make) -> None:
    model = live(make())
    folded = refold.reparameterize(model, {"pixel_values": images(1, 3, 64, 64)})
    assert norms(model) > norms(folded) == 0
    with torch.no_grad():
        for shape in ((1, 3, 64, 64), (2, 3, 96, 64)):
            for asked in ({}, {"output_hidden_states": True}, {"return_dict": False}):
                call = {"pixel_values": images(*shape), **asked}
                expected, got = model(**call), folded(**call)
                assert type(got) is type(expected)
                for one, two in zip(flat(got), flat(expected), strict=True):
                    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def test_labels_are_taken() -> None:
    model = live(resnet())
    folded = refold.reparameterize(model, {"pixel_values": images(2, 3, 32, 32)})
    call = {"pixel_values": images(2, 3, 32, 32), "labels": torch.tensor([0, 1])}
    torch.testing.assert_close(folded(**call).loss, model(**call).loss, rtol=1e-9, atol=1e-9)


def test_without_an_example_one_is_made_from_the_config() -> None:
    assert norms(refold.reparameterize(live(resnet()))) == 0
