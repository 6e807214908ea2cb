"""The plan: every candidate, folded or kept, with its cost; as a table and as data."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from helpers.traps import conv, gap, images, live, net, norms
from refold import plan, reparameterize
from refold.errors import InputError, RefusedError

Norm = nn.BatchNorm2d


def half_foldable() -> nn.Module:
    """A pair that folds, a norm behind a hook, and a merge that costs more."""
    model = net(
        lambda self, x: self.wide(self.n(self.c(x)).relu()) + self.tall(self.n2(x)),
        c=conv(), n=Norm(4), n2=nn.GroupNorm(1, 3),
        wide=nn.Conv2d(4, 4, (1, 3), padding=(0, 1)), tall=nn.Conv2d(3, 4, (3, 1), padding=(1, 0)),
    )  # fmt: skip
    return live(model)


def acnet() -> nn.Module:
    def forward(self, x):
        return self.wide(x) + self.tall(x)

    wide, tall = nn.Conv2d(3, 4, (1, 3), padding=(0, 1)), nn.Conv2d(3, 4, (3, 1), padding=(1, 0))
    return live(net(forward, wide=wide, tall=tall))


def test_steps_name_place_rule_parts_and_cost() -> None:
    done = plan(nn.Sequential(conv(bias=False), Norm(4)).eval(), torch.zeros(1, 3, 8, 8))
    [step] = done.steps
    assert step.where == "0"
    assert step.rule == "fold_affine_into_conv"
    assert step.detail == "0 + 1"
    assert step.made_of == ("0", "1")
    assert (step.parameters_before, step.parameters_after) == (116, 112)
    assert (step.macs_before, step.macs_after) == (6912, 6912)


def test_costs_are_those_of_the_models() -> None:
    model = half_foldable()
    done = plan(model, images())
    folded = done.apply()
    assert done.cost_before.parameters == sum(p.numel() for p in model.parameters())
    assert done.cost_after.parameters == sum(p.numel() for p in folded.parameters())
    assert done.cost_before.macs == done.cost_after.macs == 2 * 99 * (27 * 4 + 48 + 36)


def test_a_costlier_merge_is_told_apart_from_an_illegal_one() -> None:
    done = plan(acnet(), images())
    [kept] = done.kept
    assert kept.costlier
    assert kept.where == "wide + tall"
    assert "allow" in kept.reason
    grown = plan(acnet(), images(), allow_growth=True)
    assert len(grown.steps) == 1
    assert not grown.kept
    assert grown.cost_after.macs > grown.cost_before.macs


def test_apply_gives_a_model_of_its_own_each_time() -> None:
    model = half_foldable()
    done = plan(model, images())
    one, two = done.apply(), done.apply()
    assert one is not two
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.zero_()
    assert gap(model, two, images()) <= 1e-9
    assert gap(two, reparameterize(model, images()), images()) == 0


def test_data_is_ready_for_json() -> None:
    done = plan(acnet(), images())
    data = json.loads(json.dumps(done.to_dict()))
    assert set(data) == {"steps", "kept", "cost_before", "cost_after", "unrun", "made_up"}
    assert data["kept"][0]["costlier"] is True
    assert data["cost_before"]["parameters"] == done.cost_before.parameters
    folded = json.loads(json.dumps(plan(half_foldable(), images()).to_dict()))
    assert folded["steps"][0]["where"] == "c"


def test_table_has_a_row_for_each_candidate_and_one_line_of_totals() -> None:
    done = plan(half_foldable(), images())
    lines = str(done).splitlines()
    assert len(lines) == 2 + len(done.steps) + len(done.kept) + 1
    assert lines[-1] == done.summary()
    assert done.summary().startswith("1 folded, ")
    assert "c + n" in str(done)


def test_nothing_to_do() -> None:
    done = plan(nn.Sequential(conv(), nn.ReLU()).eval(), images().float())
    assert not done.steps
    assert not done.kept
    assert str(done).startswith("0 folded; parameters")


def test_without_an_example_nothing_is_counted() -> None:
    done = plan(half_foldable())
    assert done.cost_before.macs is None
    assert done.steps[0].macs_before is None
    assert "multiply-adds" not in done.summary()


def test_strict_raises_with_every_reason() -> None:
    model = live(nn.Sequential(Norm(3), conv(), nn.ReLU(), Norm(4)))
    kept = plan(model, images()).kept
    assert len(kept) == 2
    with pytest.raises(RefusedError) as caught:
        plan(model, images(), strict=True)
    assert all(item.where in str(caught.value) for item in kept)
    assert all(item.reason in str(caught.value) for item in kept)


def test_strict_passes_where_all_folds() -> None:
    done = plan(live(nn.Sequential(conv(), Norm(4))), images(), strict=True)
    assert norms(done.apply()) == 0


def test_places_are_full_paths() -> None:
    block = nn.Sequential(nn.Sequential(conv(), Norm(4)), nn.ReLU(), Norm(4))
    done = plan(live(net(lambda self, x: self.stage(x), stage=block)), images())
    assert [step.where for step in done.steps] == ["stage.0.0"]
    assert [kept.where for kept in done.kept] == ["stage.2"]


def test_a_lone_norm_says_where_it_stands() -> None:
    [kept] = plan(live(nn.Sequential(nn.ReLU(), Norm(3), nn.ReLU())), images()).kept
    assert kept.reason == "no neighbour takes it in: it comes from 0 and goes to 2"


class Detector(nn.Module):
    """Takes a list of images of different sizes, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(bias=False), Norm(4))

    def forward(self, pictures: list[torch.Tensor]) -> list[torch.Tensor]:
        return [self.body(picture) for picture in pictures]


def test_a_model_that_takes_a_list_has_a_plan_with_costs() -> None:
    model, given = live(Detector()), [images(1, 3, 8, 8), images(1, 3, 5, 6)]
    done = plan(model, (given,))
    assert [step.where for step in done.steps] == ["body.0"]
    assert done.cost_before.macs == done.cost_after.macs == (64 + 30) * 108
    assert gap(model, done.apply(), given) <= 1e-9


def test_a_list_that_the_model_cannot_take_is_named() -> None:
    with pytest.raises(InputError, match=r"\(1, 5, 8, 8\)"):
        plan(live(Detector()), ([images(1, 5, 8, 8)],))


class SharedHead(nn.Module):
    """A head that is called on two maps."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.head = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(x), self.head(x[..., ::2, ::2])


def test_a_head_that_is_folded_whole_is_not_said_to_be_kept() -> None:
    head = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    planned = plan(SharedHead(*head).eval(), torch.randn(1, 3, 16, 16))
    assert [step.where for step in planned.steps] == ["head.0"]
    assert not planned.kept
    lonely = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))
    stays = plan(SharedHead(*lonely).eval(), torch.randn(1, 3, 16, 16))
    assert [item.where for item in stays.kept] == ["head.2"]


class Mixed(nn.Module):
    """Something of every group: a fold, a merge, a computed weight, refusals, a part unused."""

    def __init__(self, count: int = 1) -> None:
        super().__init__()
        self.stem = nn.utils.parametrizations.weight_norm(conv())
        self.pairs = nn.Sequential(
            *(m for _ in range(count) for m in (conv(4), Norm(4), nn.ReLU()))
        )
        self.one, self.two = conv(4), conv(4, kernel=1)
        self.late = nn.ModuleList(Norm(4) for _ in range(3))
        self.unused = conv()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pairs(self.stem(x).relu())
        x = (self.one(x) + self.two(x)).relu()
        for norm in self.late:
            x = norm(x).relu()
        return x


def test_steps_are_told_apart_by_what_they_did() -> None:
    done = plan(live(Mixed()), images())
    sizes = {name: len(steps) for name, steps in done.groups.items()}
    assert sizes == {"folded": 1, "merged": 1, "parametrized": 1}
    assert [row[1] for row in done.rows()] == [
        "folded", "merged", "parametrized", "kept", "kept", "kept", "not run",
    ]  # fmt: skip
    assert done.summary().startswith("1 folded, 1 merged, 1 parametrized, 3 kept; ")
    kinds = {step["where"]: step["kind"] for step in done.to_dict()["steps"]}
    assert kinds == {"stem": "parametrized", "pairs.0": "folded", "reparam_conv": "merged"}


def test_a_digest_sums_up_by_reason() -> None:
    done = plan(live(Mixed(13)), images())
    assert len(done.groups["folded"]) == 13
    lines = done.digest().splitlines()
    assert lines[-1] == done.summary()
    text = [" ".join(line.split()) for line in lines[2:-1]]
    before, after = 13 * (148 + 8), 13 * 148
    assert text == [
        f"pairs.0 and 12 more folded {before:,} -> {after:,}",
        "reparam_conv merged one + two 168 -> 148",
        "stem parametrized weight, computed once by WeightNorm 112 -> 108",
        "late.0 and 2 more kept no neighbour takes it in",
        "unused not run no recorded call runs it; drop_unused=True leaves it out",
    ]


def test_a_digest_tells_a_single_reason_whole() -> None:
    done = plan(acnet(), images())
    assert done.kept[0].reason in done.digest()


# reasons that say where to look


def in_place(self, x: Tensor) -> Tensor:
    y = self.conv(x)
    z = y.tanh()
    y.mul_(2)
    return self.norm(y) + z + y


class Outer(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_a_change_in_place_is_named_by_path_and_line() -> None:
    model = live(Outer(net(in_place, conv=conv(), norm=Norm(4))))
    line = in_place.__code__.co_firstlineno + 3
    reasons = [kept.reason for kept in plan(model, images()).kept]
    wanted = (
        f"inner (test_planning.py:{line}) changes inner.conv in place while inner.tanh reads it"
    )
    assert reasons == [wanted]


class Lister(nn.Module):
    """Its code cannot be followed, and runs the parts of a child by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(conv(), Norm(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.parts if x.sum() < 1e9 else ():
            x = layer(x)
        return x


def test_code_that_runs_parts_is_named_by_class_and_line() -> None:
    line = Lister.forward.__code__.co_firstlineno
    [reason] = [kept.reason for kept in plan(live(Lister())).kept if kept.where == "parts"]
    assert f"the code of Lister (test_planning.py:{line})" in reason
