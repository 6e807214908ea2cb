"""`refold remove-residuals` from end to end, on networks of a few hundred weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

Net = Callable[[str], str]
SMALL = ("--input-size", "3x8x8", "--live-statistics")


def test_the_cost_comes_first_and_the_proof_follows(run: Callable, net: Net) -> None:
    result = run("remove-residuals", net("residual"), *SMALL)
    assert result.code == 0, result.err
    cost, proof = (result.out.index(word) for word in ("multiply-adds", "equal: largest error"))
    assert result.out.index("parameters") < cost < proof
    assert "residuals removed: 2" in result.out
    assert "usually costs speed" in result.err


def test_measure_times_both_and_says_what_to_expect(run: Callable, net: Net) -> None:
    result = run("remove-residuals", net("residual"), *SMALL, "--measure")
    assert result.code == 0, result.err
    assert "with residuals" in result.out
    assert "usually costs speed" in result.out


def test_what_stays_fails_if_asked_for(run: Callable, net: Net, tmp_path: Path) -> None:
    out = tmp_path / "net.onnx"
    result = run("remove-residuals", net("stubborn"), *SMALL, "--strict", "-o", out)
    assert result.code == 2
    assert "2: silu changes every value" in result.err
    assert not out.exists()
    partial = run("remove-residuals", net("stubborn"), *SMALL, "-o", out)
    assert partial.code == 0, partial.err
    assert "residuals removed: 1" in partial.out
    assert "kept at 2: silu changes every value" in partial.out
    assert out.exists()


def test_json_is_alone_on_standard_output(run: Callable, net: Net) -> None:
    record = json.loads(run("remove-residuals", net("residual"), *SMALL, "--json").out)
    assert record["proof"]["equal"]
    assert len(record["steps"]) == 2
    assert record["after"]["parameters"] > record["before"]["parameters"]
