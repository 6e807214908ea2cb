"""Small networks from Hugging Face's configurations, one for each kind: exact, and plain after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import refold
from helpers.traps import EXACT, images, live

hf: Any = pytest.importorskip("transformers")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


def llama() -> tuple[nn.Module, Tensor]:
    config = hf.LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=16,
        tie_word_embeddings=False,
    )  # fmt: skip
    return hf.LlamaForCausalLM(config), torch.arange(14).reshape(2, 7)


def vit() -> tuple[nn.Module, Tensor]:
    config = hf.ViTConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        image_size=8, patch_size=4,
    )  # fmt: skip
    return hf.ViTForImageClassification(config), images(2, 3, 8, 8)


def convnext() -> tuple[nn.Module, Tensor]:
    config = hf.ConvNextConfig(hidden_sizes=[4, 6], depths=[1, 1], num_stages=2, image_size=16)
    return hf.ConvNextForImageClassification(config), images(2, 3, 16, 16)


def vocoder() -> tuple[nn.Module, Tensor]:
    config = hf.SpeechT5HifiGanConfig(
        model_in_dim=6, upsample_initial_channel=8, upsample_rates=[2], upsample_kernel_sizes=[4],
        resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]],
    )  # fmt: skip
    model = hf.SpeechT5HifiGan(config)
    model.apply_weight_norm()
    return model, images(2, 6, 6)


def encodec() -> tuple[nn.Module, Tensor]:
    config = hf.EncodecConfig(
        num_filters=2, hidden_size=4, codebook_dim=4, codebook_size=8, upsampling_ratios=[2],
        sampling_rate=64, target_bandwidths=[1.0], num_lstm_layers=1,
    )  # fmt: skip
    return hf.EncodecModel(config), images(1, 1, 32)


def dac() -> tuple[nn.Module, Tensor]:
    config = hf.DacConfig(
        encoder_hidden_size=2, downsampling_ratios=[2], decoder_hidden_size=4, n_codebooks=1,
        codebook_size=8, codebook_dim=4,
    )  # fmt: skip
    model = hf.DacModel(config)
    model.apply_weight_norm()
    return model, images(1, 1, 32)


def drawn(model: nn.Module) -> nn.Module:
    """Return a model whose gains, scales and biases are as training leaves them."""
    noise = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim < 2:
            parameter.data += 0.5 * torch.randn(parameter.shape, generator=noise)
    return live(model)


def flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [t for item in items for t in flat(item)] if isinstance(items, tuple | list) else []


def gap(model: nn.Module, other: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        wanted, got = (flat(net(x, return_dict=False)) for net in (model, other))
    assert len(wanted) == len(got) > 0
    pairs = zip(wanted, got, strict=True)
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)) for a, b in pairs)


def gains(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters() if "norm" in name]


def computed(model: nn.Module) -> list[str]:
    modules = model.named_modules()
    return [path for path, module in modules if parametrize.is_parametrized(module)]


@pytest.mark.parametrize("make", [llama, vit])
def test_the_gains_inside_go_into_the_layers_that_read_them(make: Callable[[], Any]) -> None:
    model, x = make()
    done = refold.plan(drawn(model), x)
    folded = done.apply()
    assert gap(model, folded, x) <= EXACT
    assert len(gains(model)) > 2
    last = {name.rpartition(".")[0] for name in gains(folded)}
    assert last <= {"model.norm", "vit.layernorm"}  # results that may be asked for show it
    assert not last or done.kept
    assert "RMSNorm" in str(folded) or "LayerNorm" in str(folded)


def test_a_convnext_keeps_the_gain_of_what_may_be_asked_for() -> None:
    model, x = convnext()
    done = refold.plan(drawn(model), x)
    folded = done.apply()
    assert gap(model, folded, x) <= EXACT
    assert not [name for name in gains(folded) if "layers" in name]
    assert not [name for name, _ in folded.named_parameters() if "layer_scale" in name]
    assert any("output_hidden_states may be asked for" in kept.reason for kept in done.kept)


@pytest.mark.parametrize("make", [vocoder, encodec, dac])
def test_a_codec_has_plain_weights(make: Callable[[], Any]) -> None:
    model, x = make()
    done = refold.plan(drawn(model), x)
    folded = done.apply()
    if make is vocoder:
        with torch.no_grad():
            torch.testing.assert_close(folded(x), model(x), rtol=1e-9, atol=1e-12)
    else:
        assert gap(model, folded, x) <= EXACT
    assert not computed(folded)
    stored = [step.where for step in done.groups["parametrized"] if "by WeightNorm" in step.detail]
    assert len(stored) == len(computed(model)) > 4
    others = [step.where for step in done.groups["parametrized"] if step.where not in stored]
    assert all("codebook" in where for where in others)  # codes are looked up by distances
