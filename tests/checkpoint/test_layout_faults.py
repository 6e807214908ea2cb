"""What a published layout may lack or have too much of is said by key; nothing is half-written."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import refold
from helpers.layout_nets import (
    NETS,
    State,
    answer,
    dbb,
    deployed,
    error,
    live,
    mobileone,
    replknet,
    repvgg,
)
from refold.blocks import RepVGGBlock
from refold.checkpoint import deploy_state_dict, load_checkpoint, read_state_dict
from refold.errors import CheckpointError, InputError, MissingDependencyError

pytestmark = pytest.mark.slow

Change = Callable[[State], State]


def without(*keys: str) -> Change:
    return lambda state: {key: value for key, value in state.items() if not key.startswith(keys)}


def plus(key: str, *shape: int) -> Change:
    return lambda state: state | {key: torch.ones(*shape).double()}


def unlike(key: str, fill: float) -> Change:
    return lambda state: state | {key: torch.full_like(state[key], fill)}


FAULTS: dict[str, tuple[Callable[[], nn.Module], Change, str]] = {
    "a missing tensor": (
        repvgg,
        without("stage1.0.rbr_1x1.bn.running_var"),
        r"stage1\.0 looks like a block of RepVGG .*no stage1\.0\.rbr_1x1\.bn\.running_var",
    ),
    "a missing branch": (
        repvgg,
        without("stage1.0.rbr_1x1"),
        r"there is no stage1\.0\.rbr_1x1\.conv\.weight",
    ),
    "a bias where none can be": (
        repvgg,
        plus("stage1.0.rbr_dense.conv.bias", 8),
        r"such a block has no stage1\.0\.rbr_dense\.conv\.bias",
    ),
    "another shape": (
        repvgg,
        plus("stage1.0.rbr_1x1.bn.bias", 9),
        r"stage1\.0\.rbr_1x1\.bn\.bias is \(9,\) where \(8,\) belongs",
    ),
    "an even kernel": (
        repvgg,
        plus("stage1.0.rbr_dense.conv.weight", 8, 8, 4, 4),
        r"stage1\.0 .*no centred place in kernel \(4, 4\)",
    ),
    "a kernel of two axes": (
        repvgg,
        plus("stage1.0.rbr_dense.conv.weight", 8, 8),
        r"stage1\.0\.rbr_dense\.conv\.weight",
    ),
    "channels no multiple of a group's": (
        repvgg,
        plus("stage1.1.rbr_identity.weight", 7),
        r"its identity branch has 7 channels, no multiple of the kernel's 4",
    ),
    "a missing full-size branch": (
        mobileone,
        without("stage1.0.rbr_conv.1.conv"),
        r"stage1\.0 .*there is no stage1\.0\.rbr_conv\.1\.conv\.weight",
    ),
    "groups that nothing tells": (
        dbb,
        without("stage1.0.dbb_1x1_kxk"),
        r"there is no stage1\.0\.dbb_1x1_kxk\.conv1\.weight",
    ),
    "groups that do not divide": (
        dbb,
        plus("stage1.0.dbb_1x1_kxk.conv2.weight", 8, 3, 3, 3),
        r"dbb_1x1_kxk\.idconv1\.weight gives 8 channels and .*conv2\.weight reads 3",
    ),
    "a small kernel that is too large": (
        replknet,
        plus("stage.0.small_conv.conv.weight", 8, 1, 15, 15),
        r"stage\.0\.small_conv\.conv\.weight is \(8, 1, 15, 15\) where \(8, 1, 13, 13\)",
    ),
    "both forms of one block": (
        repvgg,
        plus("stage1.0.rbr_reparam.bias", 8),
        r"stage1\.0\.rbr_reparam\.bias stand beside the branches",
    ),
    "a negative variance": (
        repvgg,
        unlike("stage1.0.rbr_1x1.bn.running_var", -1.0),
        r"NaN or infinity after folding in stage1\.0\.rbr_reparam\.weight",
    ),
    "no number": (
        repvgg,
        unlike("linear.bias", float("nan")),
        r"NaN or infinity .*linear\.bias",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_and_nothing_changes(tmp_path: Path, fault: str) -> None:
    build, change, reason = FAULTS[fault]
    layout = next(name for name, net in NETS.items() if net is build)
    state = change(live(build).state_dict())
    with pytest.raises(CheckpointError, match=reason) as caught:
        deploy_state_dict(state)
    assert "\n" not in str(caught.value)
    model = deployed(layout)
    before = answer(model)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, tmp_path / "a.pth")
    assert str(tmp_path / "a.pth") in str(caught.value)
    assert torch.equal(before, answer(model))


def test_a_fold_that_overflows_is_refused(tmp_path: Path) -> None:
    state = {key: value.half() for key, value in live(repvgg).state_dict().items()}
    state["stage1.0.rbr_dense.bn.weight"] = torch.full((8,), 6e4).half()
    state["stage1.0.rbr_dense.conv.weight"] = torch.full((8, 8, 3, 3), 6e4).half()
    with pytest.raises(CheckpointError, match=r"overflow .*precision|NaN or infinity after"):
        deploy_state_dict(state)


@pytest.mark.parametrize("saved", NETS)
@pytest.mark.parametrize("form", ["train", "deploy"])
def test_another_architecture_is_named_by_its_keys(tmp_path: Path, saved: str, form: str) -> None:
    layouts = list(NETS)
    other = layouts[(layouts.index(saved) + 1) % len(layouts)]
    torch.save(live(NETS[saved]).state_dict(), tmp_path / "a.pth")
    model = live(NETS[other]) if form == "train" else deployed(other)
    before = answer(model)
    with pytest.raises(
        CheckpointError, match=r"does not fit the model: \d+ (missing|unexpected): "
    ) as caught:
        load_checkpoint(model, tmp_path / "a.pth")
    keys = [*model.state_dict(), *live(NETS[saved]).state_dict()]
    assert any(f" {key}" in str(caught.value) for key in keys)
    assert torch.equal(before, answer(model))


def test_a_wider_network_is_named_by_shape(tmp_path: Path) -> None:
    state = live(repvgg).state_dict()
    state["linear.weight"], state["linear.bias"] = torch.ones(9, 16), torch.ones(9)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"linear\.weight \(9, 16\) instead of \(5, 16\)"):
        load_checkpoint(deployed("RepVGG"), tmp_path / "a.pth")


def test_transposed_blocks_are_not_mistaken_for_convolutions(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(RepVGGBlock(4, 4, 3, 1, 1, identity=False, transposed=True))

    saved, model = live(build), live(build, seed=7)
    torch.save(saved.state_dict(), tmp_path / "a.pth")
    plain = refold.reparameterize(model)
    with pytest.raises(CheckpointError, match=r"transposed convolutions: 0\.rbr_reparam\.weight"):
        load_checkpoint(plain, tmp_path / "a.pth")
    load_checkpoint(model, tmp_path / "a.pth")
    x = torch.randn(1, 4, 5, 5).double()
    with torch.no_grad():
        assert error(saved(x), refold.reparameterize(model)(x)) <= 1e-9


def test_keys_of_no_layout_are_refused() -> None:
    state = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict()
    with pytest.raises(CheckpointError, match=r"no known layout of branches \(0\.weight, 0\.bias"):
        deploy_state_dict(state)


# -- HDF5 -----------------------------------------------------------------------------------------


@pytest.fixture
def hdf5(tmp_path: Path) -> Path:
    """ACNet's weights as its repository keeps them: a flat dict of arrays."""
    h5py = pytest.importorskip("h5py")
    file = tmp_path / "acnet.hdf5"
    with h5py.File(file, "w") as content:
        for key, tensor in live(NETS["ACNet"]).state_dict().items():
            if not key.endswith("num_batches_tracked"):
                content.create_dataset(f"module.{key}", data=tensor.numpy())
    return file


def test_hdf5_loads_in_either_form(hdf5: Path) -> None:
    saved, model = live(NETS["ACNet"]), live(NETS["ACNet"], seed=7)
    report = load_checkpoint(model, hdf5)
    assert (report.layout, report.stripped) == ("ACNet", ("module.",))
    assert torch.equal(answer(saved), answer(model))
    plain = deployed("ACNet")
    assert load_checkpoint(plain, hdf5.rename(hdf5.with_suffix(".pth"))).folded == 3
    assert error(answer(saved), answer(plain)) <= 1e-9


def test_hdf5_of_other_kinds(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "nested.h5", "w") as content:
        content.create_dataset("layer/bias", data=[1, 2], dtype=">f4")
        content.create_dataset("layer/count", data=3)
    state = read_state_dict(tmp_path / "nested.h5")
    assert {key: tensor.tolist() for key, tensor in state.items()} == {
        "layer.bias": [1.0, 2.0],
        "layer.count": 3,
    }
    with h5py.File(tmp_path / "text.h5", "w") as content:
        content.create_dataset("name", data="resnet")
    with pytest.raises(CheckpointError, match=r"dataset 'name' of .* not an array of numbers"):
        read_state_dict(tmp_path / "text.h5")


def test_damaged_hdf5_is_refused(hdf5: Path) -> None:
    hdf5.write_bytes(hdf5.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"cannot be read .* damaged, truncated"):
        load_checkpoint(deployed("ACNet"), hdf5)


def test_hdf5_without_h5py_names_the_extra(hdf5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingDependencyError, match=r"refold\[h5py\]"):
        read_state_dict(hdf5)


# -- the command ----------------------------------------------------------------------------------


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("echo it ran >&2",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda state: without("stage1.0.rbr_1x1.bn")(state), "stage1.0.rbr_1x1.bn.weight"),
        (lambda state: {"state_dict": {}, "hook": _Evil()}, "is empty"),
        (lambda state: unlike("linear.bias", float("inf"))(state), "linear.bias"),
        (lambda state: {"weight": torch.ones(3)}, "no known layout"),
    ],
)
def test_refused_weights_leave_no_file(
    tmp_path: Path, content: Callable[[State], object], reason: str, capfd: pytest.CaptureFixture
) -> None:
    from refold.cli.app import main

    torch.save(content(live(repvgg).state_dict()), tmp_path / "a.pth")
    assert main(["convert", str(tmp_path / "a.pth"), "-o", str(tmp_path / "b.safetensors")]) == 2
    captured = capfd.readouterr()
    assert reason in captured.err
    assert "it ran" not in captured.err
    assert [file.name for file in tmp_path.iterdir()] == ["a.pth"]


def test_truncated_weights_leave_no_file(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    from refold.cli.app import main

    torch.save(live(repvgg).state_dict(), tmp_path / "whole.pth")
    (tmp_path / "a.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:5000])
    assert main(["convert", str(tmp_path / "a.pth"), "-o", str(tmp_path / "b.safetensors")]) == 2
    assert "damaged, truncated" in capfd.readouterr().err
    assert not (tmp_path / "b.safetensors").exists()


def test_writing_needs_a_place(tmp_path: Path) -> None:
    from refold.checkpoint import write_state_dict

    with pytest.raises(InputError, match="cannot write"):
        write_state_dict({"a": torch.ones(1)}, tmp_path / "no" / "where" / "a.safetensors")
