"""Parameters and multiply-adds of the backbones, against what their articles and authors state."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torchvision
from torch import nn

import refold
from helpers.nightly import some
from refold.errors import InputError
from refold.models import Backbone, TowerMaker
from refold.workload import Workload, workload_of

pytestmark = pytest.mark.slow


class Figure(NamedTuple):
    """Millions of parameters and of multiply-adds as they are stated; None where they are not."""

    parameters: float | None
    macs: float | None = None
    options: dict[str, Any] = {}  # noqa: RUF012 - read only


# ShuffleNet and, beside it, MobileNetV1: the README of ShuffleNet's authors. It says 138 for g3 at
# width 1, where the widths that their code names make 137.46; the other seven agree. The rest:
# their articles, or measured on the networks that the articles' own code builds (Inception v3,
# ResNeXt, MobileNetV2, ResNet); CIFAR: 10 classes.
STATED = {
    "shufflenetv1_g3_x0_5": Figure(0.7, 38), "shufflenetv1_g3_x1_5": Figure(3.4, 292),
    "shufflenetv1_g3_x2_0": Figure(5.4, 524), "shufflenetv1_g3": Figure(1.9, 137.46),
    "shufflenetv1_g8_x0_5": Figure(1.0, 40), "shufflenetv1_g8": Figure(2.4, 138),
    "shufflenetv1_g8_x1_5": Figure(4.3, 290), "shufflenetv1_g8_x2_0": Figure(6.5, 522),
    "mobilenetv1": Figure(4.2, 569), "mobilenetv1_075": Figure(2.6, 325),
    "mobilenetv1_050": Figure(1.3, 149), "mobilenetv1_025": Figure(0.5, 41),
    "mobilenetv2": Figure(3.50, 301),
    "mobilefacenet": Figure(0.99, None, {"num_classes": 0, "deploy": True}),
    "inception_v3": Figure(None, 5710),
    "xception": Figure(22.86),
    "resnext50_32x4d": Figure(25.03, 4230), "resnext50_32x4d_concat": Figure(25.03),
    "resnext50_32x4d_paths": Figure(25.03),
    "resnet18": Figure(11.69), "resnet34": Figure(21.80), "resnet50": Figure(25.6),
    "preact_resnet110": Figure(1.73, None, {"num_classes": 10}),
    "preact_resnet164": Figure(1.70, None, {"num_classes": 10}),
    "preact_resnet1001": Figure(10.33, None, {"num_classes": 10}),
    "cifar_resnet20": Figure(0.27, None, {"num_classes": 10}),
    "cifar_resnet32": Figure(0.46, None, {"num_classes": 10}),
    "cifar_resnet44": Figure(0.66, None, {"num_classes": 10}),
    "cifar_resnet56": Figure(0.85, None, {"num_classes": 10}),
    "cifar_resnet110": Figure(1.7, None, {"num_classes": 10}),
    "cifar_resnet1202": Figure(19.4, None, {"num_classes": 10}),
}  # fmt: skip


def on_meta(name: str, **options: Any) -> Any:
    with torch.device("meta"):
        return refold.create_model(name, **options).eval()


def size(name: str, *, run: bool = True, **options: Any) -> Workload:
    model = on_meta(name, **options)
    x = torch.empty(1, *model.default_cfg["input_size"], device="meta")
    return workload_of(model, x if run else None)


def digits(stated: float) -> float:
    """Return half a unit of a number's last place."""
    return 0.5 * 10 ** -len(str(stated).partition(".")[2])


# One of each family, and what takes no time.
OFTEN = [
    "shufflenetv1_g3_x0_5", "shufflenetv1_g8", "mobilenetv1", "mobilenetv1_050", "mobilefacenet",
    "xception", "resnext50_32x4d", "resnet18", "resnet50", "preact_resnet110", "cifar_resnet20",
    "cifar_resnet56", "mobilenetv2",
]  # fmt: skip


@pytest.mark.parametrize("name", some(STATED, keep=OFTEN))
def test_sizes_are_the_stated_ones(name: str) -> None:
    figure = STATED[name]
    found = size(name, run=figure.macs is not None, **figure.options)
    if figure.parameters is not None:
        assert found.parameters / 1e6 == pytest.approx(
            figure.parameters, abs=1.01 * digits(figure.parameters)
        )
    if figure.macs is not None:
        room = 5 if figure.macs > 1000 else 1  # in billions two digits are stated
        assert (found.macs or 0) / 1e6 == pytest.approx(figure.macs, abs=room)


def test_resnexts_forms_cost_the_same() -> None:
    options = {"depths": (1, 1, 1, 1), "cardinality": 4, "base": 8}
    forms = ("", "_concat", "_paths")
    assert len({size(f"resnext50_32x4d{form}", **options) for form in forms}) == 1


def test_inception_v3s_parameters_are_stated_with_its_auxiliary_head() -> None:
    found = size("inception_v3", run=False, aux_logits=True).parameters
    assert found / 1e6 == pytest.approx(27.16, abs=0.005)


def test_the_resolution_changes_the_work_alone() -> None:
    """The convolutions' work goes with the area; the classifier's does not."""
    whole, small = size("mobilenetv1"), size("mobilenetv1_160")
    head = 1024 * 1000
    assert small.parameters == whole.parameters
    assert ((small.macs or 0) - head) * 49 == ((whole.macs or 0) - head) * 25


@pytest.mark.parametrize("resolution", [0, -1, 0.9, 1e-3])
def test_a_resolution_must_give_whole_maps(resolution: float) -> None:
    with pytest.raises(InputError, match="1/7"):
        on_meta("mobilenetv1", resolution=resolution)


STAGES = {
    1: (144, 288, 576), 2: (200, 400, 800), 3: (240, 480, 960), 4: (272, 544, 1088),
    8: (384, 768, 1536),
}  # fmt: skip
STEMS = {"_x0_5": (0.5, 12), "": (1, 24), "_x1_5": (1.5, 24), "_x2_0": (2, 48)}


@pytest.mark.parametrize("groups", STAGES)
@pytest.mark.parametrize("suffix", STEMS)
def test_shufflenets_have_the_articles_widths(groups: int, suffix: str) -> None:
    model = on_meta(f"shufflenetv1_g{groups}{suffix}")
    width, stem = STEMS[suffix]
    # 12 channels do not leave whole groups of the 180 that the first unit adds.
    stem = 16 if (groups, suffix) == (8, "_x0_5") else stem
    stages = [int(full * width) for full in STAGES[groups]]
    assert model.feature_info.channels() == [stem, *stages]
    units = [*model.stage2, *model.stage3, *model.stage4]
    assert [len(model.stage2), len(model.stage3), len(model.stage4)] == [4, 8, 4]
    assert [unit.reduce.conv.groups for unit in units] == [1, *[groups] * 15]
    assert {unit.expand.conv.groups for unit in units} == {groups}
    assert model.linear.bias is None


def test_every_shufflenet_is_counted() -> None:
    names = {f"shufflenetv1_g{groups}{suffix}" for groups in STAGES for suffix in STEMS}
    assert set(refold.list_models("shufflenetv1*")) == names


def test_googlenet_differs_from_torchvisions_by_its_5x5() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.GoogLeNet(aux_logits=False, init_weights=False)
    rows = [(16, 32), (32, 96), (16, 48), (24, 64), (24, 64), (32, 64), *[(32, 128)] * 2, (48, 128)]
    more = sum((25 - 9) * a * b for a, b in rows)
    found, wanted = size("inceptionv1").parameters, workload_of(theirs).parameters
    assert found == wanted + more
    assert size("inceptionv1_factorised").parameters - wanted == sum(
        9 * b * b + 2 * b for _, b in rows
    )


def test_inception_modules_return_the_articles_channels() -> None:
    model = on_meta("inceptionv1")
    found: list[int] = []
    for name in model.body:
        if name.startswith("inception"):
            model.get_submodule(name).register_forward_hook(
                lambda module, args, output: found.append(output.shape[1])
            )
    model(torch.empty(1, 3, 224, 224, device="meta"))
    assert found == [256, 480, 512, 512, 512, 528, 832, 832, 1024]


def test_halving_orders_cost_what_the_article_says() -> None:
    """From d x d x k to d/2 x d/2 x 2k: 2 d2 k2 with the pool last, a quarter with it first."""
    d, k, x = 16, 8, torch.empty(1, 8, 16, 16)
    work = {
        order: workload_of(TowerMaker().reduction(k, 2 * k, order).eval(), x).macs
        for order in ("conv_pool", "pool_conv", "parallel")
    }
    assert work["conv_pool"] == 9 * 2 * d**2 * k**2
    assert work["pool_conv"] == 9 * 2 * (d // 2) ** 2 * k**2
    assert work["parallel"] == 9 * (d // 2) ** 2 * k**2


@pytest.mark.parametrize("order", ["original", "relu_only", "full"])
def test_orders_move_norms_but_convolve_alike(order: str) -> None:
    small: dict[str, Any] = {"depths": (2, 2, 2), "bottleneck": True}
    wanted = size("preact_resnet164", **small)
    assert size("preact_resnet164", order=order, **small).macs == wanted.macs


def test_resnet200_has_the_articles_depth() -> None:
    model = on_meta("resnetv2_200")
    projections = 4
    convs = sum(isinstance(part, nn.Conv2d) for part in model.modules())
    assert convs + 1 - projections == 200
    assert [len(model.get_submodule(f"stage{n}")) for n in range(1, 5)] == [3, 24, 36, 3]


@pytest.mark.parametrize("depth", some([110, 164, 1001], keep=1))
def test_depth_is_the_names(depth: int) -> None:
    model = on_meta(f"preact_resnet{depth}")
    projections = sum(isinstance(unit.join.path, nn.Conv2d) for unit in units_of(model))
    convs = sum(isinstance(part, nn.Conv2d) for part in model.modules())
    assert convs + 1 - projections == depth


def units_of(model: Backbone) -> list[Any]:
    return [unit for path in ("stage1", "stage2", "stage3") for unit in model.get_submodule(path)]
