"""What a report says is so: costs, origins, kernels, errors and reasons."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import refold
from refold.reporting import Comparison
from refold.reporting.facts import gather
from refold.residuals import removal
from reporting.nets import HOSTILE, Block, Net, conv_norm, lively

SIZE = (2, 3, 10, 12)
Facts = dict[str, Any]


def facts_of(model: nn.Module, example: Tensor, **options: Any) -> Facts:
    plan = refold.plan(model, example)
    return gather(
        Comparison(
            name="net",
            before=model,
            after=plan.model,
            inputs=(example,),
            account=plan,
            fold=refold.reparameterize,
            **options,
        )
    )


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return lively(Net())


@pytest.fixture(scope="module")
def facts(model: nn.Module) -> Facts:
    return facts_of(model, torch.randn(SIZE, generator=torch.Generator().manual_seed(0)))


def box(facts: Facts, side: str, place: str) -> Facts:
    [found] = [one for one in facts[side]["boxes"] if one["place"] == place]
    return found


def names(facts: Facts, numbers: list[int]) -> list[str]:
    return [facts["before"]["boxes"][number]["place"] for number in numbers]


def numbers_of(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.int8).double()


@pytest.mark.slow
@pytest.mark.parametrize("side", ["before", "after"])
def test_the_boxes_cost_what_the_network_costs(facts: Facts, model: nn.Module, side: str) -> None:
    example = torch.zeros(SIZE)
    network = model if side == "before" else refold.reparameterize(model, example)
    plan = refold.plan(network, example)
    boxes = facts[side]["boxes"]
    assert sum(one["parameters"] for one in boxes) == plan.cost_before.parameters
    assert sum(one["macs"] for one in boxes) == plan.cost_before.macs
    assert facts[side]["parameters"] == plan.cost_before.parameters
    assert facts[side]["macs"] == plan.cost_before.macs


def test_a_layer_says_which_branches_became_it(facts: Facts) -> None:
    made = box(facts, "after", "stage.0.reparam_conv")
    branches = [names(facts, branch["boxes"]) for branch in made["branches"]]
    assert branches == [
        ["stage.0.wide.0", "stage.0.wide.1"],
        ["stage.0.point.0", "stage.0.point.1"],
        ["stage.0.identity"],
    ]
    # The additions between the branches belong to it as well.
    assert len(made["from"]) == len(made["layers"]) + 2
    owners = [source for one in facts["after"]["boxes"] for source in one.get("from", ())]
    assert sorted(owners) == sorted(set(owners))


def test_the_pictures_of_the_branches_add_up(facts: Facts) -> None:
    made = [one for one in facts["after"]["boxes"] if one.get("branches")]
    assert len(made) == 4  # the stem, two blocks, the hostile one
    for one in made:
        total = sum(numbers_of(branch["pixels"]) for branch in one["branches"])
        whole = numbers_of(one["kernel"]["pixels"])
        shown = one["kernel"]["rows"] * one["kernel"]["columns"] * 9
        assert whole.numel() in (shown, shown // 9)
        assert bool(((total - whole).abs() <= len(one["branches"])).all())  # of 127 levels
        assert bool((whole != 0).any())
        assert one["rounding"] < 1e-6


def test_an_error_is_measured_not_assumed(facts: Facts, model: nn.Module) -> None:
    errors = [one["error"] for one in facts["after"]["boxes"] if one.get("from")]
    assert max(errors) < 1e-9
    example = torch.randn(SIZE)
    plan = refold.plan(model, example)
    plan.model.get_submodule("stage.0.reparam_conv").weight.data[0, 0, 0, 0] += 0.5  # type: ignore[operator]
    spoilt = Comparison(
        name="", before=model, after=plan.model, inputs=(example,), account=plan
    )  # without the fold, so that the values are those of this very result
    found = gather(spoilt)
    wrong = box(found, "after", "stage.0.reparam_conv")
    assert wrong["error"] > 1e-3
    assert "branches" not in wrong  # they do not add up to it
    assert box(found, "after", "stem.0")["error"] < 1e-6


def test_what_stays_points_at_its_boxes(facts: Facts) -> None:
    [item] = facts["kept"]
    assert "stays" in item["place"]
    assert "border" in item["reason"] or "pad" in item["reason"]
    assert "stays" in names(facts, item["before"])
    assert facts["after"]["boxes"][item["after"][0]]["place"] == "stays"


def test_recipes_count_the_kinds_of_folds(facts: Facts) -> None:
    found = {(len(one["boxes"]), one["to"], *one["branches"]) for one in facts["recipes"]}
    wide, point = "Conv 3×3 → BatchNorm", "Conv 1×1 → BatchNorm"
    assert found == {
        (2, "Conv 3×3", wide, point, "BatchNorm"),
        (1, "Conv 3×3", wide),
        (1, "Conv 1×1", point),
    }


def test_stages_are_the_parts_of_the_network(facts: Facts) -> None:
    assert facts["stages"][0] == "stem"
    assert HOSTILE in facts["stages"]
    stage = facts["stages"].index(HOSTILE)
    inside = [one for one in facts["before"]["boxes"] if one["stage"] == stage]
    # The norm behind it costs no multiply-adds of its own, so it is not a stage.
    assert sum(one["parameters"] for one in inside) == 64 + 16 + 16


def test_facts_are_the_same_every_time_and_plain(facts: Facts, model: nn.Module) -> None:
    example = torch.randn(SIZE, generator=torch.Generator().manual_seed(0))
    again = json.dumps(facts_of(model, example), allow_nan=False)
    assert again == json.dumps(facts, allow_nan=False)


class Shortcut(nn.Module):
    """A shortcut around layers that shrink nothing, with a scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = conv_norm(6, 6, 3, groups=6)
        self.gamma = nn.Parameter(torch.rand(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.body(x)


@pytest.mark.parametrize(
    ("make", "shape", "branches"),
    [
        (Shortcut, (1, 6, 7, 7), 2),
        (lambda: nn.Sequential(*conv_norm(6, 4, 1), nn.ReLU()), (1, 6, 5, 5), 1),
        (lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2), nn.BatchNorm2d(6)), (1, 4, 5, 5), 1),
        (lambda: nn.Sequential(nn.Conv1d(4, 6, 5), nn.BatchNorm1d(6)), (1, 4, 9), 1),
        (lambda: nn.Sequential(nn.Conv3d(2, 3, 3), nn.BatchNorm3d(3)), (1, 2, 5, 5, 5), 1),
        (lambda: nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)), (2, 5), 1),
        (lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8)), (1, 4, 5, 5), 1),
    ],
)
def test_every_form_of_a_kernel_is_split(
    make: Callable[[], nn.Module], shape: tuple[int, ...], branches: int
) -> None:
    found = facts_of(lively(make()), torch.randn(shape))
    [made] = [one for one in found["after"]["boxes"] if one.get("layers")]
    assert len(made["branches"]) == branches
    assert made["rounding"] < 1e-6


def test_inputs_may_be_lists() -> None:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = conv_norm(3, 4, 3)

        def forward(self, images: list[Tensor], scale: float = 1.0) -> dict[str, Any]:
            return {"found": [self.body(image) * scale for image in images]}

    model, images = lively(Detector()), [torch.randn(1, 3, 6, 6), torch.randn(1, 3, 8, 8)]
    plan = refold.plan(model, (images,))
    found = gather(
        Comparison(
            name="", before=model, after=plan.model, inputs=(images,), account=plan,
            fold=refold.reparameterize, measure=True,
        )
    )  # fmt: skip
    assert found["before"]["macs"] == plan.cost_before.macs
    assert found["input"] == "1×3×6×6, 1×3×8×8"
    parts = [one for one in found["after"]["boxes"] if one["kind"] == "part"]  # it runs twice
    assert [one["place"] for one in parts] == ["body", "body"]
    assert all(one["ms"] for one in parts)


def test_a_part_that_cannot_be_followed_is_one_box() -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) if float(x.sum()) > -1e9 else x

    model = lively(nn.Sequential(Strange(), *conv_norm(3, 4, 3)))
    found = facts_of(model, torch.randn(1, 3, 6, 6))
    assert sum(one["parameters"] for one in found["before"]["boxes"]) == 12 + 108 + 8
    assert any(one["kind"] == "part" for one in found["after"]["boxes"])


def test_a_removed_residual_is_told() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.two(self.one(x).relu())

    model, example = Residual().eval(), torch.randn(1, 4, 6, 6)
    done = removal(model, example)
    found = gather(
        Comparison(
            name="", before=done.folded, after=done.model, inputs=(example,), account=done,
            fold=refold.remove_residuals, verb="without residuals",
        )
    )  # fmt: skip
    assert box(found, "after", "one")["layers"]  # it has more channels now
    assert found["after"]["boxes"][-1]["error"] < 1e-9


def test_times_are_noted_where_asked_for() -> None:
    model, example = lively(Block(4)), torch.randn(1, 4, 6, 6)
    found = facts_of(model, example, measure=True)
    assert all(one["ms"] > 0 for side in ("before", "after") for one in found[side]["boxes"])
    assert all(one["ms"] is None for one in facts_of(model, example)["after"]["boxes"])
