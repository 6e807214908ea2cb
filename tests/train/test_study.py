"""Comparisons: every variant builds, runs are done once, the table says what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import refold
from refold.errors import InputError
from refold.train import STUDIES, load_recipe, study
from refold.train.manifold import lost, spiral
from train.pictures import folders
from train.runs import records

SHORT = {
    "epochs": 1, "batch_size": 8, "model": "cifar_resnet20",
    "options": {"depths": [1, 1, 1], "widths": [2, 4, 8]},
    "augment.size": 16, "augment.crop": "none",
}  # fmt: skip


@pytest.mark.parametrize("name", STUDIES)
def test_every_variant_builds_and_can_deploy(name: str) -> None:
    chosen = STUDIES[name]
    macs = set()
    for variant, changes in chosen.variants.items():
        recipe = load_recipe("digits", {**chosen.shared, **changes})
        with torch.device("meta"):
            net = refold.create_model(recipe.model, num_classes=10, in_chans=1, **recipe.options)
        assert sum(p.numel() for p in net.parameters()) > 1000, variant
        macs.add((recipe.model, str(recipe.options)))
    if name == "branches":  # the same network: only its branches differ
        assert len(macs) == 1


def test_a_study_is_done_once_and_read_again(tmp_path: Path) -> None:
    data = folders(tmp_path / "data", train=8, val=4, side=16)
    options = {"seeds": (0, 1), "data": data, "changes": SHORT, "only": ["plain", "ACB"]}
    report = study("branches", tmp_path / "out", **options)
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
    assert json.loads((tmp_path / "out" / "branches.json").read_text())["ACB"] == list(acb.values)
    assert "<svg" in (tmp_path / "out" / "branches.svg").read_text()


def test_unknown_names() -> None:
    with pytest.raises(InputError, match=r"no study 'branch': there are .*branches"):
        study("branch", "nowhere")
    with pytest.raises(InputError, match="no variant DBC: it has plain"):
        study("branches", "nowhere", only=["DBC"])


def test_a_relu_loses_less_in_more_dimensions(tmp_path: Path) -> None:
    report = study("manifold", tmp_path, seeds=range(8))
    first, last = report.rows[0], report.rows[-1]
    assert (first.name, last.name) == ("2", "30")
    assert sum(last.values) < sum(first.values)
    # With as many dimensions as signs allow, the best linear map is exact but for the half-planes.
    assert lost(30, 0).linear < 1e-3
    assert lost(30, 0).collapsed == 0
    assert spiral().abs().max() <= 1
