"""What may stand where a model has floats: floats of any width; all else is refused or said."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from refold.blocks import RepVGGBlock
from refold.checkpoint import (
    deploy_state_dict,
    load_checkpoint,
    load_in_order,
    read_state_dict,
    write_state_dict,
)
from refold.errors import CheckpointError, InputError

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz)


def build() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


@pytest.fixture
def state(generator: torch.Generator) -> dict[str, Tensor]:
    own = build().state_dict()
    drawn = {key: torch.randn(t.shape, generator=generator) for key, t in own.items()}
    return {key: drawn[key].abs().to(t.dtype) for key, t in own.items()}


def saved(tmp_path: Path, content: object) -> Path:
    file = tmp_path / "a.pth"
    torch.save(content, file)
    return file


def refuse(file: Path, reason: str, model: nn.Module | None = None) -> None:
    model = model or build()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_checkpoint(model, file)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[key], t) for key, t in model.state_dict().items())


def quantized(tensor: Tensor) -> Tensor:
    return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.filterwarnings("ignore:.*quant.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*quant.*:UserWarning")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda w: w.to_sparse(), r"0\.weight: sparse \(sparse_coo\); save tensor\.to_dense"),
        (lambda w: w.reshape(4, 27).to_sparse_csr(), r"0\.weight: sparse \(sparse_csr\)"),
        (lambda w: w.to("meta"), r"0\.weight: a shape without values \(meta\)"),
        (quantized, r"0\.weight: quantized; save tensor\.dequantize"),
        (lambda w: w.to(torch.complex64) * 1j, r"0\.weight complex64 instead of float32"),
        (lambda w: w.to(torch.int8), r"0\.weight int8 instead of float32"),
        (lambda w: w > 1, r"0\.weight bool instead of float32"),
        (lambda w: w.to(torch.uint8).view(torch.bits8), r"0\.weight: bits8"),
        (lambda w: w * torch.nan, r"NaN or infinity in 0\.weight"),
        (lambda w: (w * torch.nan).to(torch.float8_e4m3fn), r"NaN or infinity in 0\.weight"),
    ],
)
def test_no_weights(
    tmp_path: Path, state: dict[str, Tensor], change: Callable[[Tensor], Tensor], reason: str
) -> None:
    value = change(state["0.weight"].float())
    refuse(saved(tmp_path, state | {"0.weight": value}), reason)


@pytest.mark.parametrize("dtype", FLOAT8)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_float8_is_widened_and_that_is_said(
    tmp_path: Path, state: dict[str, Tensor], dtype: torch.dtype, suffix: str
) -> None:
    narrow = state | {"0.weight": state["0.weight"].to(dtype), "0.bias": state["0.bias"].to(dtype)}
    file = tmp_path / f"a{suffix}"
    if suffix == ".pth":
        torch.save(narrow, file)
    else:
        safetensors.torch.save_file(narrow, file)
    model = build()
    report = load_checkpoint(model, file)
    note = f"widened 2 of {str(dtype)[6:]} to float32"
    assert report.notes == (note,)
    assert note in str(report)
    assert torch.equal(model[0].weight, narrow["0.weight"].float())
    assert read_state_dict(file)["0.bias"].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_floats_of_any_width_are_cast(
    tmp_path: Path, state: dict[str, Tensor], dtype: torch.dtype
) -> None:
    cast = {key: t.to(dtype) for key, t in state.items()}  # the count of batches as well
    model = build()
    assert load_checkpoint(model, saved(tmp_path, cast)).notes == ()
    assert all(torch.equal(cast[key].to(t.dtype), t) for key, t in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint16, torch.int32, torch.uint64])
def test_a_count_may_be_any_integer(
    tmp_path: Path, state: dict[str, Tensor], dtype: torch.dtype
) -> None:
    count = torch.tensor(97, dtype=dtype)
    model = build()
    load_checkpoint(model, saved(tmp_path, state | {"1.num_batches_tracked": count}))
    assert model[1].num_batches_tracked.item() == 97


@pytest.mark.parametrize("count", [torch.tensor(1.5), torch.tensor(1e30)])
def test_a_count_that_is_no_integer(
    tmp_path: Path, state: dict[str, Tensor], count: Tensor
) -> None:
    file = saved(tmp_path, state | {"1.num_batches_tracked": count})
    refuse(file, r"1\.num_batches_tracked float32 instead of int64")


def test_one_number_is_one_number(tmp_path: Path, state: dict[str, Tensor]) -> None:
    model = build()
    load_checkpoint(model, saved(tmp_path, state | {"1.num_batches_tracked": torch.tensor([5])}))
    assert model[1].num_batches_tracked.shape == ()
    assert model[1].num_batches_tracked == 5
    refuse(saved(tmp_path, state | {"0.bias": torch.ones(1, 4)}), "of another shape: 0.bias")
    refuse(saved(tmp_path, state | {"0.bias": torch.ones(0)}), "of another shape: 0.bias")


def test_complex_models_take_complex_weights(tmp_path: Path) -> None:
    model = nn.Linear(2, 3, dtype=torch.complex64)
    state = {key: torch.randn(t.shape) + 2j for key, t in model.state_dict().items()}
    state["bias"] = state["bias"].conj()
    load_checkpoint(model, saved(tmp_path, state))
    assert all(torch.equal(state[key], t) for key, t in model.state_dict().items())


def test_strides_and_shared_memory_are_only_a_matter_of_memory(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    block = torch.arange(20.0)
    state |= {
        "0.weight": state["0.weight"].to(memory_format=torch.channels_last),
        "0.bias": torch.tensor(3.0).expand(4),
        "1.weight": block[::5],
        "1.bias": block[2:6],
        "1.running_mean": torch.randn(4, dtype=torch.complex64).conj().imag,
    }
    model = build()
    load_checkpoint(model, saved(tmp_path, state))
    assert all(torch.equal(state[key], t) for key, t in model.state_dict().items())


def test_a_tensor_far_larger_than_its_memory_is_refused_unread(tmp_path: Path) -> None:
    file = saved(tmp_path, {"0.weight": torch.ones(1).expand(10**6, 10**6)})
    refuse(file, "bytes but claims to hold 4,000,000,000,000")


def test_layers_that_are_one_tensor_need_one_value(tmp_path: Path) -> None:
    def tied() -> nn.Sequential:
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
        model[1].weight = model[0].weight
        return model

    state = tied().state_dict()
    load_checkpoint(tied(), saved(tmp_path, state))
    torn = state | {"1.weight": state["1.weight"] + 1}
    refuse(saved(tmp_path, torn), r"different values for 0\.weight and 1\.weight", tied())


def test_a_name_with_and_without_a_prefix_is_two_tensors(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    content = {"_orig_mod.0.weight": state["0.weight"] + 1} | state
    refuse(saved(tmp_path, content), r"two tensors for one name.*_orig_mod\.0\.weight")


def test_keys_are_names(tmp_path: Path, state: dict[str, Tensor]) -> None:
    content: dict[Any, Tensor] = {1: torch.ones(1), "1": torch.zeros(1)}
    refuse(saved(tmp_path, content), "keys that are not names: 1;")


class _Extra(nn.Module):
    def get_extra_state(self) -> dict[str, int]:
        return {"a": 1}

    def set_extra_state(self, state: object) -> None:
        raise AssertionError(state)


def test_models_that_nothing_can_be_loaded_into(tmp_path: Path, state: dict[str, Tensor]) -> None:
    file = saved(tmp_path, state)
    with pytest.raises(CheckpointError, match=r"0\.weight.*meta device.*to_empty"):
        load_checkpoint(build().to("meta"), file)
    with pytest.raises(CheckpointError, match=r"0\.weight, 0\.bias have no shape yet"):
        load_checkpoint(nn.Sequential(nn.LazyConv2d(4, 3)), file)
    model = build().append(_Extra())
    load_checkpoint(model, file)  # what is not a tensor is none of a checkpoint's business
    assert torch.equal(model[0].weight, state["0.weight"])
    with pytest.raises(InputError, match=r"2\._extra_state cannot be written .* it is a dict"):
        write_state_dict(model.state_dict(), tmp_path / "a.safetensors")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32])
def test_in_order_and_folding_keep_the_same_laws(
    state: dict[str, Tensor], dtype: torch.dtype
) -> None:
    with pytest.raises(CheckpointError, match=f"holds {str(dtype)[6:]} instead of float32"):
        load_in_order(build(), state | {"0.weight": state["0.weight"].to(dtype)})
    weights = RepVGGBlock(4, 4, 3, padding=1).state_dict()
    key = next(key for key in weights if key.endswith("conv.weight"))
    with pytest.raises(CheckpointError, match="holds no floating-point numbers"):
        deploy_state_dict(weights | {key: weights[key].to(dtype)})


def test_float8_weights_fold_to_float32() -> None:
    weights = RepVGGBlock(4, 4, 3, padding=1).state_dict()
    kernels = {k: t.to(torch.float8_e4m3fn) for k, t in weights.items() if t.ndim == 4}
    folded = deploy_state_dict(weights | kernels)
    expected = deploy_state_dict(weights | {k: t.float() for k, t in kernels.items()})
    assert {t.dtype for t in folded.values()} == {torch.float32}
    assert all(torch.equal(expected[key], t) for key, t in folded.items())
