"""RepMLP's networks: published counts, exact folds, sizes that do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import refold
from helpers.nightly import some
from models.nets import alive, build, error
from refold.errors import InputError
from refold.workload import Workload, workload_of

pytestmark = pytest.mark.slow

TOLERANCE = 1e-9
# Millions of parameters and billions of multiply-adds when deployed, measured on the authors' code
# with FC3 counted once a partition. None: not published.
RESNETS: list[tuple[dict[str, Any], float, float | None]] = [
    ({"img_size": 224, "groups": (8, 8)}, 40.87, 3.89),
    ({"img_size": 320, "groups": (4, 8)}, 87.38, 8.35),
    ({"img_size": 320, "groups": 8}, 72.02, 8.11),
    ({"img_size": 320, "groups": (8, 16)}, 59.22, 8.06),
    ({"stages": (4,), "reductions": 2}, 52.78, None),
    ({"stages": (4,), "reductions": 4}, 30.88, 3.83),
    ({"stages": (4,), "reductions": 8}, 25.03, None),
    ({"light": True, "groups": 4}, 86.14, 3.08),
    ({"light": True, "groups": 8}, 57.87, 2.92),
    ({"stages": ()}, 25.53, 4.09),
    ({"stages": (), "img_size": 320}, 25.53, 8.34),
]
NETS = {
    "t224": (38.31, 2.8), "b224": (68.28, 6.7), "t256": (58.72, 4.2), "b256": (96.52, 9.6),
    "d256": (86.93, 8.6), "l256": (117.75, 11.58),
}  # fmt: skip


def deployed(name: str, **options: Any) -> Workload:
    with torch.device("meta"):
        model = refold.create_model(name, deploy=True, **options).eval()
        size: Any = model.default_cfg["input_size"]
        return workload_of(model, torch.empty(1, *size))


@pytest.mark.parametrize(("options", "parameters", "macs"), some(RESNETS, keep=4))
def test_repmlp_resnets_have_the_published_counts(
    options: dict[str, Any], parameters: float, macs: float | None
) -> None:
    found = deployed("repmlp_resnet50", **options)
    assert round(found.parameters / 1e6, 2) == parameters
    assert macs is None or round((found.macs or 0) / 1e9, 2) == macs


def test_the_articles_claim_of_groups() -> None:
    """From g8/16 to g4/8: 47 % more parameters, 3.6 % more multiply-adds."""
    many, few = (deployed("repmlp_resnet50", img_size=320, groups=g) for g in ((8, 16), (4, 8)))
    assert round(few.parameters / many.parameters - 1, 3) == pytest.approx(0.475, abs=0.001)
    assert (few.macs or 0) / (many.macs or 1) - 1 == pytest.approx(0.036, abs=0.001)


def test_light_is_a_name() -> None:
    assert deployed("repmlp_resnet50_light") == deployed("repmlp_resnet50", light=True, groups=4)


@pytest.mark.parametrize("name", some(NETS, keep=3))
def test_repmlpnets_have_the_published_counts(name: str) -> None:
    found, (parameters, macs) = deployed(f"repmlpnet_{name}"), NETS[name]
    assert round(found.parameters / 1e6, 2) == parameters
    digits = 2 if name == "l256" else 1
    assert (found.macs or 0) / 1e9 == pytest.approx(macs, abs=0.6 * 10**-digits)


INJECTED = {
    "t224": 38.33, "b224": 68.33, "t256": 58.74, "b256": 96.57, "d256": 86.99, "l256": 117.82,
}  # fmt: skip


@pytest.mark.parametrize("name", INJECTED)
def test_the_released_deploy_form_keeps_the_other_norms(name: str) -> None:
    """As `deploy_state_dict` gives it: FC3 has a bias, its norm and the convolutions are gone."""
    with torch.device("meta"):
        model = refold.create_model(f"repmlpnet_{name}")
    count = 0
    for path, part in model.named_modules():
        if "fc3_bn" in path or "repconv" in path:
            continue
        count += sum(p.numel() for p in part.parameters(recurse=False))
        count += part.out_channels if path.endswith("fc3") else 0  # type: ignore[operator]
    assert round(count / 1e6, 2) == INJECTED[name]


def test_fc3_counts_once_a_partition() -> None:
    """Maps of twice the size hold four times the partitions: FC3 takes four times the work."""
    sizes = {"partitions": (56, 28, 14, 7), "widths": (64, 128, 256, 512)}
    one, four = (deployed("repmlpnet_t224", img_size=s, **sizes).macs or 0 for s in (224, 448))
    assert four / one == pytest.approx(4, abs=0.01)


def matrices(model: nn.Module) -> int:
    return sum(isinstance(part, nn.Linear | nn.Conv2d) for part in model.modules())


def norms(model: nn.Module) -> list[str]:
    kinds = nn.modules.batchnorm._BatchNorm
    return [path for path, part in model.named_modules() if isinstance(part, kinds)]


def test_repmlpnet_keeps_one_norm_a_unit() -> None:
    """The one before the block: the gate and the partitions both read it."""
    model, x = alive("repmlpnet_t224", kernels=(1, 3), partitions=((8, 4), 8, 4, 4), img_size=128)
    with torch.no_grad():
        wanted = model(x)
        folded = refold.reparameterize(model, x)
        assert error(wanted, folded(x)) <= TOLERANCE
    plain = build("repmlpnet_t224", deploy=True, img_size=128, partitions=((8, 4), 8, 4, 4))
    for one in (folded, plain):
        assert len(norms(one)) == 5
        assert all(path.endswith("prebn1") for path in norms(one))
        assert matrices(one) == 1 + 5 * 5 + 3 + 1
    assert sum(p.numel() for p in folded.parameters()) == sum(p.numel() for p in plain.parameters())


def test_stages_and_lists_may_be_chosen() -> None:
    with torch.device("meta"):
        net = refold.create_model(
            "repmlp_resnet50", stages=(2, 5), groups=(4, 8), reductions=(1, 4), fc_reductions=(2, 1)
        )
    second, last = net.stage1[1].btnk_repmlp, net.stage4[1].btnk_repmlp  # type: ignore[index, union-attr]
    assert (second.fc3.groups, last.fc3.groups) == (4, 8)
    assert (second.channels, last.channels) == ((64, 64), (128, 128))
    assert second.fc1_fc2.fc1.out_features * 2 == second.fc1_fc2.fc1.in_features
    assert (second.grid.parts, last.grid.is_one) == ((8, 8), True)


@pytest.mark.parametrize(
    ("size", "partition", "kernels"),
    [(224, (7, 7), {1, 3, 5}), (320, (10, 10), {1, 3, 5, 7}), ((192, 384), (6, 8), {1, 3})],
)
def test_the_partition_follows_the_image(size: Any, partition: Any, kernels: set[int]) -> None:
    with torch.device("meta"):
        net = refold.create_model("repmlp_resnet50", img_size=size)
    block: Any = net.stage3[1].btnk_repmlp  # type: ignore[index, union-attr]
    assert block.grid.partition == partition
    assert set(block.locals) == {f"repconv{k}" for k in kernels}


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("repmlp_resnet50", {"img_size": 232}, "no partition of 3 to 10 divides the maps"),
        ("repmlp_resnet50", {"groups": (8, 8, 8)}, "one for each of stages"),
        ("repmlp_resnet50", {"stages": (1, 4)}, "among 2, 3, 4, 5"),
        ("repmlpnet_t224", {"img_size": 250}, "must be a multiple of 32"),
        (
            "repmlpnet_t224",
            {"img_size": 256},
            r"\(56, 56\) does not divide the",
        ),
    ],
)
def test_a_size_that_does_not_fit_is_refused(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said), torch.device("meta"):
        refold.create_model(name, **options)


def test_a_multiple_of_the_image_takes_the_same_weights() -> None:
    with torch.device("meta"):
        small, large = (refold.create_model("repmlpnet_t224", img_size=s) for s in (224, 448))
    assert {k: v.shape for k, v in small.state_dict().items()} == {
        k: v.shape for k, v in large.state_dict().items()
    }
