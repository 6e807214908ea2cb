"""Who goes on from a run sees images prepared as the run did, unless the recipe says otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import refold
from refold.errors import InputError
from refold.training.recipes.cookbook import from_yaml, load_recipe
from refold.training.run.inherited import inherited
from refold.training.run.pruned import plan_course
from refold.training.settings import Habits
from training.pictures import folders
from training.runs import TINY, tiny

MEAN = [0.4, 0.5, 0.6]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders(tmp_path_factory.mktemp("data"), train=6, val=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    tiny(folder, data, changes={"epochs": 1, "augment.mean": MEAN})
    return folder


def further(run: Path, data: Path, output: Path, **options: Any) -> Any:
    return refold.train(
        options.pop("recipe", "finetune"), output=output, data=data, habits=Habits(workers=0),
        tracker="none", cpu=True, **options,
    )  # fmt: skip


@pytest.mark.parametrize("as_model", [True, False])
def test_size_and_mean_are_those_of_the_run(
    run: Path, data: Path, tmp_path: Path, as_model: bool
) -> None:
    given = {"model": str(run)} if as_model else {"checkpoint": run, "model": str(run)}
    plan = further(run, data, tmp_path / "on", dry_run=True, **given).summary
    assert plan["image"] == (3, 12, 12)
    plan = further(run, data, tmp_path / "on", dry_run=True, changes={"augment.size": 16}, **given)
    assert plan.summary["image"] == (3, 16, 16)


def test_what_is_open_is_taken_from_a_run_or_its_file_and_from_nothing_else(
    run: Path, data: Path, tmp_path: Path
) -> None:
    recipe = load_recipe("finetune")
    steps = inherited(recipe, None, str(run))
    assert steps["augment.size"] == 12
    assert steps["augment.mean"] == MEAN
    assert inherited(recipe, str(run / "deploy.safetensors")) == steps
    assert inherited(recipe, str(run / "checkpoints" / "last"), "resnet18") == steps
    assert inherited(recipe, None, "resnet18") == {}
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.yaml").write_text("none")
    assert inherited(recipe, str(tmp_path / "broken")) == {}
    own = load_recipe("finetune", {"augment.size": 20, "augment.mean": [0.0, 0.0, 0.0]})
    assert set(inherited(own, str(run))) == {"augment.std"}
    course = plan_course(output=tmp_path / "slim", data=data, weights=(None, str(run)))
    assert course.image == (3, 12, 12)
    assert course.chosen.augment.mean == tuple(MEAN)


def test_it_resumes_where_the_first_run_is_gone(run: Path, data: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    run.rename(first)
    try:
        changes = {"epochs": 1, "deploy.files": [], "options": TINY["options"]}
        given: dict[str, Any] = {"model": "repvgg_a0", "checkpoint": first, "changes": changes}
        further(first, data, tmp_path / "on", **given)
    finally:
        first.rename(run)
    kept = from_yaml(tmp_path / "on" / "config.yaml")["recipe"]["augment"]
    assert (kept["size"], kept["mean"]) == (12, MEAN)
    again = further(first, data, tmp_path / "on", resume=True, **given)
    assert again.summary["preprocessing"]["input"] == [3, 12, 12]
    given["changes"] = {**changes, "augment.size": 16}
    with pytest.raises(InputError, match="--image-size 16, but the run was started with 12"):
        further(first, data, tmp_path / "on", resume=True, **given)
