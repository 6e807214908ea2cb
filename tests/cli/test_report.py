"""`refold report`, and `--report` of the commands that change a network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SMALL = ("--input-size", "3x8x8", "--live-statistics")


def facts_in(page: Path) -> dict[str, Any]:
    found = re.search(r'id="facts">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_a_report_shows_the_folds_and_the_proof(run: Any, net: Any, tmp_path: Path) -> None:
    page = tmp_path / "net.html"
    result = run("report", net("branchy"), *SMALL, "--measure", "-o", page)
    assert result.code == 0
    assert "folded, " in result.out
    assert "parameters 928 -> 808" in result.out
    assert "equal: largest error" in result.out
    assert f"wrote {page}" in result.err
    facts = facts_in(page)
    assert facts["name"] == net("branchy")
    assert facts["proof"]["exact"] < 1e-9
    assert facts["steps"] == 2
    assert facts["before"]["boxes"][1]["ms"] is not None


@pytest.mark.parametrize("name", ["net.pdf", "missing/folder/net.html"])
def test_a_page_that_cannot_be_written_is_refused_first(
    run: Any, net: Any, tmp_path: Path, name: str
) -> None:
    for words in (["report", "-o"], ["remove-residuals", "--report"]):
        result = run(words[0], net("branchy"), *SMALL, words[1], tmp_path / name)
        assert result.code == 2
        assert "build" not in result.err
    assert not list(tmp_path.iterdir())


def test_convert_writes_a_page_too(run: Any, net: Any, tmp_path: Path) -> None:
    page, out = tmp_path / "net.html", tmp_path / "net.safetensors"
    result = run("convert", net("costlier"), *SMALL, "-o", out, "--report", page)
    assert result.code == 0
    [kept] = facts_in(page)["kept"]
    assert kept["costlier"]
    assert out.exists()
    weights = run("convert", out, "-o", tmp_path / "other.safetensors", "--report", page)
    assert weights.code == 2
    assert "--report belong to a network" in weights.err


def test_pruning_and_removal_write_a_page(run: Any, net: Any, tmp_path: Path) -> None:
    page = tmp_path / "net.html"
    words = ["--ratio", "0.5", "--round-to", "1"]
    assert run("prune", net("branchy"), *SMALL, *words, "--report", page).code == 0
    facts = facts_in(page)
    assert facts["verb"] == "pruned"
    assert facts["after"]["parameters"] < facts["before"]["parameters"]
    [slim] = [box for box in facts["after"]["boxes"] if box["place"] == "0"]
    assert slim["layers"]
    assert slim["shape"] == "1×4×8×8"  # of a float64 fold that rounds the channels alike
    assert run("remove-residuals", net("residual"), *SMALL, "--report", page).code == 0
    facts = facts_in(page)
    assert (facts["verb"], facts["steps"]) == ("without residuals", 2)
