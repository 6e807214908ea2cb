"""Comparisons: runs are done once, in any number of processes; the table says what was measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from refold.errors import InputError
from refold.training import study
from refold.training.studies import shapes
from refold.training.studies.manifold import lost, spiral
from refold.training.studies.report import Report
from training.pictures import folders
from training.runs import LIGHT, last, records

pytestmark = pytest.mark.slow

SHORT = {
    "epochs": 1, "batch_size": 8, "model": "cifar_resnet20",
    "options": {"depths": [1, 1, 1], "widths": [2, 4, 8]},
    "augment.size": 16, "augment.crop": "none", **LIGHT,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders(tmp_path_factory.mktemp("data"), train=8, val=4, side=16)


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """Return a study of two networks from two seeds each, and its folder."""
    folder = tmp_path_factory.mktemp("studies") / "out"
    options = {"seeds": (0, 1), "data": data, "changes": SHORT, "only": ["plain", "ACB"]}
    return study("branches", folder, **options), folder


def test_a_study_is_done_once_and_read_again(
    tmp_path: Path, data: Path, done: tuple[Report, Path]
) -> None:
    report = done[0]
    shutil.copytree(done[1], tmp_path / "out")
    options = {"seeds": (0, 1), "data": data, "changes": SHORT, "only": ["plain", "ACB"]}
    plain, acb = report.rows
    runs = tmp_path / "out" / "runs"
    assert plain.values == tuple(
        records(runs / "plain" / f"seed-{seed}", "epoch")[-1]["val_top1"] for seed in (0, 1)
    )
    assert acb.cells["same answers"] == "16 of 16"
    assert plain.cells["parameters"].split("-> ")[1] == acb.cells["parameters"].split("-> ")[1]
    seen = {path: path.stat().st_mtime_ns for path in runs.rglob("summary.json")}
    assert len(seen) == 4
    (runs / "acb" / "seed-1" / "summary.json").unlink()  # as if killed at the end
    again = study("branches", tmp_path / "out", **options)
    assert again.rows == report.rows
    moved = {p for p in seen if p.stat().st_mtime_ns != seen[p]}
    assert moved == {runs / "acb" / "seed-1" / "summary.json"}
    table = (tmp_path / "out" / "branches.md").read_text()
    assert "| ACB |" in table
    assert "of 2 seeds" in table
    numbers = json.loads((tmp_path / "out" / "branches.json").read_text())
    assert numbers["ACB"]["values"] == list(acb.values)
    assert "<svg" in (tmp_path / "out" / "branches.svg").read_text()


def test_a_study_goes_on_by_its_own_settings_alone(tmp_path: Path, data: Path) -> None:
    options = {"data": data, "changes": SHORT, "only": ["plain"]}
    alone = study("branches", tmp_path, seeds=(0,), **options)
    table = (tmp_path / "branches.md").read_text()
    assert str(alone.rows[0]).endswith("%")  # one seed has no spread
    assert "±" not in table
    assert "- same answers: validation images" in table
    for others in (
        {"changes": {**SHORT, "optimizer.lr": 0.07}},
        {"changes": {**SHORT, "augment": {"size": 16, "crop": "none", "flip": False}}},
        {"data": folders(tmp_path / "other", train=8, val=4, side=16)},
    ):
        with pytest.raises(InputError, match=r"was begun with other settings .*plain, seed 0"):
            study("branches", tmp_path, seeds=(0, 1), **{**options, **others})
    assert (tmp_path / "branches.md").read_text() == table
    more = study("branches", tmp_path, seeds=(0,), **{**options, "only": ["ACB"]})
    assert [row.name for row in more.rows] == ["plain", "ACB"]


# A process takes longer to import torch and its friends than to train.
@pytest.mark.parametrize("seeds", [(1,), pytest.param((0, 1), marks=pytest.mark.zoo)], ids=str)
def test_runs_beside_each_other_are_the_same_runs(
    tmp_path: Path, data: Path, seeds: tuple[int, ...]
) -> None:
    """Their processes compute with another number of threads: the same but for rounding."""
    options = {"data": data, "changes": SHORT, "only": ["plain"], "seeds": seeds}
    alone, beside = (
        study("branches", tmp_path / str(jobs), jobs=jobs, **options) for jobs in (1, 2)
    )
    assert beside.rows[0].values == alone.rows[0].values
    for seed in seeds:
        one, two = (last(tmp_path / at / "runs" / "plain" / f"seed-{seed}") for at in "12")
        assert one.keys() == two.keys()
        for name, tensor in one.items():
            assert torch.allclose(tensor, two[name], rtol=1e-4, atol=1e-6), name


def test_a_run_that_diverges_is_a_result(tmp_path: Path, data: Path) -> None:
    changes = {**SHORT, "optimizer.lr": 1e30, "schedule.warmup": 0}
    options = {"seeds": (0, 1), "data": data, "changes": changes, "only": ["plain"]}
    report = study("branches", tmp_path, **options)
    assert str(report.rows[0]) == "2 diverged"
    assert "| plain | 2 diverged |" in (tmp_path / "branches.md").read_text()
    message = json.loads((tmp_path / "runs" / "plain" / "seed-0" / "diverged.json").read_text())
    assert "diverged" in message["message"]
    assert study("branches", tmp_path, **options).rows == report.rows


def test_a_pruned_network_trains_on_where_it_stood(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "_ROUNDS", 4)
    options = {"seeds": (0,), "data": data, "only": ["slimmed, pruned, residuals removed"]}
    report = study("pruning", tmp_path, changes={**SHORT, "optimizer.lr": 0.01}, **options)
    (row,) = (row for row in report.rows if row.name == "slimmed, pruned, residuals removed")
    before = json.loads((tmp_path / "runs" / "slimmed" / "seed-0" / "summary.json").read_text())
    run = tmp_path / "runs" / "slimmed-pruned-residuals-removed" / "seed-0"
    after = json.loads((run / "summary.json").read_text())
    share = after["deployed_form"]["macs"] / before["deployed_form"]["macs"]
    assert 0.2 < share <= 0.4
    assert row.cells["same answers"] == "8 of 8"
    (run / "summary.json").unlink()
    again = study("pruning", tmp_path, changes={**SHORT, "optimizer.lr": 0.01}, **options)
    assert again.rows == report.rows


def test_gradients_are_measured_over_the_depth(tmp_path: Path, data: Path) -> None:
    shared = {k: v for k, v in SHORT.items() if k != "options"} | {"model": "resnet_21"}
    options = {"large_stem": False, "width": 0.0625}
    only = ["ResNet-21", "RepVGG-21"]
    report = study(
        "depth", tmp_path, seeds=(0,), data=data, only=only, changes={**shared, "options": options}
    )
    for row in report.rows:
        assert row.gradients.keys() == {"start", "trained"}
        assert all(-1 <= value <= 1 for values in row.gradients.values() for value in values)
    assert "gradients' correlation, start" in report.table()[0]
    assert "<svg" in (tmp_path / "depth.svg").read_text()


def test_a_relu_loses_less_in_more_dimensions(tmp_path: Path) -> None:
    report = study("manifold", tmp_path, seeds=range(8))
    first, last_row = report.rows[0], report.rows[-1]
    assert (first.name, last_row.name) == ("2", "30")
    assert sum(last_row.values) < sum(first.values)
    # With as many dimensions as signs allow, the best linear map is exact but for the half-planes.
    assert lost(30, 0).linear < 1e-3
    assert lost(30, 0).collapsed == 0
    assert spiral().abs().max() <= 1
