"""The layouts of RMNet's authors: their names, what only they keep, and folding on the way.

The names are written down from the authors' repository; the oracle of a fold is the training form.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import refold
from helpers.random_residuals import additions
from models.nets import alive, build, error, image
from refold.checkpoint import deploy_state_dict, load_in_order
from refold.errors import CheckpointError
from zoo.live import enliven

pytestmark = pytest.mark.slow

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
LOG = NORM[2:]


def norm(name: str, roles: tuple[str, ...] = NORM) -> set[str]:
    return {f"{name}.{role}" for role in roles}


def conv_norms(prefix: str, pairs: dict[str, str]) -> set[str]:
    """Return the names of convolutions without bias and of their norms."""
    names = {f"{prefix}{conv}.weight" for conv in pairs}
    return names.union(*(norm(prefix + bn) for bn in pairs.values()))


def logs(prefix: str) -> set[str]:
    return norm(f"{prefix}running1", LOG) | norm(f"{prefix}running2", LOG)


BRANCHES = {"conv33": "bn33", "conv11": "bn11"}
THREE = {"conv1": "bn1", "conv2": "bn2", "conv3": "bn3"}
DOWN = {"downsample.0": "downsample.1"}


def rmnext(depths: tuple[int, ...]) -> set[str]:
    """Every stage starts with a projection but the first, whose stem has its width already."""
    names = {"fc.weight", "fc.bias"}
    names |= conv_norms("layer0.0.", BRANCHES) | conv_norms("layer0.1.", BRANCHES)
    for stage, depth in enumerate(depths, 1):
        for place in range(depth):
            block = f"layer{stage}.{place}."
            projects = place == 0 and stage > 1
            names |= conv_norms(block, {**THREE, **DOWN} if projects else THREE) | logs(block)
    return names


def rmrep(pairs: int) -> set[str]:
    names, at = {"fc.weight", "fc.bias"}, 0
    for leads in (2, 0, 1, 1, 1):
        for place in range(leads + (2 * pairs if leads != 2 else 0)):
            names |= conv_norms(f"feature.{at}.", BRANCHES)
            if place >= leads:
                names |= norm(f"feature.{at}.bn00")
            at += 1
    return names


def rmobilenet(residuals: set[int]) -> set[str]:
    names = {"classifier.1.weight", "classifier.1.bias"}
    names |= conv_norms("features.0.", {"0": "1"}) | conv_norms("features.14.", {"0": "1"})
    names |= conv_norms("features.1.", {"0": "1", "3": "4"})
    for at in range(2, 14):
        names |= conv_norms(f"features.{at}.conv.", {"0": "1", "3": "4", "6": "7"})
        names |= logs(f"features.{at}.") if at in residuals else set()
    return names


OFFICIAL: dict[str, tuple[set[str], dict[str, Any]]] = {
    "rmnext_41x5_16": (rmnext((2, 3, 5, 3)), {"statistics": True}),
    "rmrep_21": (rmrep(2), {}),
    "repvgg_37": (rmrep(4), {}),
    "rmobilenet": (rmobilenet({3, 5, 7, 8, 9, 10, 11, 13}), {"statistics": True}),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_names_are_the_authors(name: str) -> None:
    names, options = OFFICIAL[name]
    with torch.device("meta"):
        assert set(refold.create_model(name, **options).state_dict()) == names


def test_rmnet18_is_torchvisions_resnet18_and_logs() -> None:
    with torch.device("meta"):
        theirs = set(torchvision.models.resnet18().state_dict())
        assert set(refold.create_model("rmnet18").state_dict()) == theirs
        own = set(refold.create_model("rmnet18", statistics=True).state_dict())
    blocks = [f"layer{stage}.{place}." for stage in range(1, 5) for place in range(2)]
    assert own - theirs == set().union(*map(logs, blocks))


@pytest.mark.parametrize("name", ["rmnet20", "rmnext_26x3_32", "rmobilenet_cifar"])
@pytest.mark.parametrize("statistics", [False, True])
def test_files_with_logged_statistics_load(name: str, statistics: bool, tmp_path: Path) -> None:
    model, x = alive(name, statistics=True)
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, "epoch": torch.tensor(3)}, tmp_path / "f.pth")
    other = build(name, statistics=statistics).eval()
    report = refold.load_checkpoint(other, tmp_path / "f.pth")
    assert report.layout == "RMNet"
    logged = [key for key in model.state_dict() if ".running1." in key or ".running2." in key]
    assert list(report.left_out) == ([] if statistics else logged)
    assert ("has no use for" in str(report)) is not statistics
    assert torch.equal(model(x), other(x))


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_reserving_blocks_fold_on_the_way(ratio: float, tmp_path: Path) -> None:
    model, x = alive("rmrep_21", ratio=ratio)
    torch.save(model.state_dict(), tmp_path / "train.pth")
    plain = build("rmrep_21", deploy=True).eval()
    report = refold.load_checkpoint(plain, tmp_path / "train.pth")
    assert report.folded == len(plain.feature)
    with torch.no_grad():
        assert error(model(x), plain(x)) < 1e-12
    state = deploy_state_dict(model.state_dict())
    assert {key: value.shape for key, value in state.items()} == {
        key: value.shape for key, value in plain.state_dict().items()
    }
    torch.save(plain.state_dict(), tmp_path / "deploy.pth")
    with pytest.raises(CheckpointError, match="training form"):
        refold.load_checkpoint(model, tmp_path / "deploy.pth")


@pytest.mark.parametrize("name", ["rmnet20", "rmobilenet_cifar"])
def test_files_with_residuals_load_into_plain_networks(name: str, tmp_path: Path) -> None:
    model, x = alive(name, statistics=True)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "train.pth")
    plain = build(name, deploy=True).eval()
    report = refold.load_checkpoint(plain, tmp_path / "train.pth")
    assert report.folded == sum(
        isinstance(part, nn.BatchNorm2d) for part in model.modules()
    ) - 2 * (sum(key.endswith("running1.running_mean") for key in model.state_dict()))
    with torch.no_grad():
        assert error(model(x), plain(x)) < 1e-5  # the plain network was made in float32
    assert additions(plain, x) == 0


def wrong(name: str, **options: Any) -> dict[str, Tensor]:
    return build(name, **options).state_dict()


def test_weights_alone_are_refused_where_a_plain_network_needs_more() -> None:
    with pytest.raises(CheckpointError, match=r"feature.2's gates; give the network"):
        deploy_state_dict(wrong("rmrepse"))
    with pytest.raises(CheckpointError, match="residual blocks; give the network"):
        deploy_state_dict(wrong("rmnext_26x3_32", statistics=True))
    broken = wrong("rmrep_21")
    broken["feature.2.conv33.weight"] = torch.zeros(9, 8, 3, 3)
    with pytest.raises(CheckpointError, match=r"feature\.2 looks like a block of RMNet"):
        deploy_state_dict(broken)


def test_torchvisions_weights_load_in_order_into_mobilenetv2() -> None:
    ours: Any = refold.create_model("rmobilenetv2", num_classes=10).double().eval()
    theirs = torchvision.models.mobilenet_v2(num_classes=10).double().eval()
    x = image(ours, 1)
    enliven(theirs, (x,))
    load_in_order(ours, theirs.state_dict())
    with torch.no_grad():
        assert error(theirs(x), ours(x)) < 1e-12  # the same layers, called otherwise
