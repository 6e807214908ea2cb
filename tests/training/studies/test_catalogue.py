"""What the studies vary: every variant builds, and starts from one that there is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import refold
from refold.cli.app import app
from refold.errors import InputError
from refold.training import STUDIES, load_recipe, study
from refold.training.studies.runs import Job, wanted

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", STUDIES)
def test_every_variant_builds_and_has_a_start(name: str) -> None:
    chosen = STUDIES[name]
    shapes, folders = set(), set()
    for variant, (changes, of) in {
        n: (v.changes, v.of) for n, v in chosen.variants.items()
    }.items():
        folders.add(Job(name, variant, 0, Path(), None, {}).run)
        assert of is None or chosen.variants[of].of is None
        base = chosen.variants[of].changes if of else {}
        recipe = load_recipe("digits", {**chosen.shared, **base, **changes})
        with torch.device("meta"):
            net = refold.create_model(recipe.model, num_classes=10, in_chans=1, **recipe.options)
        assert sum(p.numel() for p in net.parameters()) > 1000, variant
        shapes.add((recipe.model, str(recipe.options)))
    assert len(folders) == len(chosen.variants)
    if name == "branches":  # the same network: only its branches differ
        assert len(shapes) == 1


def test_the_help_names_every_study() -> None:
    text = CliRunner().invoke(app, ["study", "--help"], env={"COLUMNS": "200"}).output
    assert all(name in text for name in [*STUDIES, "manifold"])


def test_what_a_variant_starts_from_is_run_first() -> None:
    pruning = STUDIES["pruning"]
    assert wanted(pruning, ["plain, pruned, residuals kept"])[0] == "plain"
    every = wanted(pruning, [])
    assert sorted(every) == sorted(pruning.variants)
    assert {every[0], every[1]} == {"slimmed", "plain"}


def test_unknown_names() -> None:
    with pytest.raises(InputError, match=r"no study 'branch'; the studies are .*branches"):
        study("branch", "nowhere")
    with pytest.raises(InputError, match="no variant DBC: it has plain"):
        study("branches", "nowhere", only=["DBC"])
    with pytest.raises(InputError, match="a job at least, got 3 and 0"):
        study("branches", "nowhere", jobs=0)
