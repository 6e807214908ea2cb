"""`refold prune` from end to end, on networks of a few hundred weights."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.pictures import folders

pytestmark = pytest.mark.slow

Net = Callable[[str], str]
SMALL = ("--input-size", "3x8x8", "--live-statistics")


def test_cost_and_layers_come_before_the_proof(run: Callable, net: Net, tmp_path: Path) -> None:
    out = tmp_path / "net.onnx"
    result = run("prune", net("residual"), *SMALL, "--ratio", "0.5", "-o", out)
    assert result.code == 0, result.err
    places = [result.out.index(word) for word in ("multiply-adds", "1.body.0", "masked: largest")]
    assert places == sorted(places)
    assert "kept at 0: more than one layer reads its channels" in result.out
    assert out.exists()


def test_without_residuals_more_goes(run: Callable, net: Net) -> None:
    words = ("prune", net("residual"), *SMALL, "--ratio", "0.5", "--round-to", "1", "--json")
    tied = json.loads(run(*words).out)
    free = json.loads(run(*words, "--remove-residuals", "--importance", "l1").out)
    assert len(free["steps"]) > len(tied["steps"]) > 0
    assert free["proof"]["equal"]
    assert free["plain"]["parameters"] > free["before"]["parameters"]


BAD = [
    ((), "--ratio 0.5"),
    (("--ratio", "1"), "below 1"),
    (("--ratio", "0.5", "--threshold", "1"), "one of ratio"),
    (("--ratio", "0.5", "--floor", "few"), "--floor 'few'"),
    (("--ratio", "0.5", "--importance", "l2"), "l2"),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=[said for _, said in BAD])
def test_bad_input_writes_nothing(
    run: Callable, net: Net, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    out = tmp_path / "net.onnx"
    result = run("prune", net("residual"), *SMALL, *words, "-o", out)
    assert result.code == 2
    assert said in result.err
    assert not out.exists()


def test_a_target_of_multiply_adds(run: Callable, net: Net) -> None:
    words = ("prune", net("residual"), *SMALL, "--macs", "0.8", "--round-to", "1", "--json")
    done = json.loads(run(*words).out)
    assert done["after"]["macs"] <= 0.8 * done["before"]["macs"]
    assert run(*words, "--ratio", "0.5").code == 2


def test_a_target_out_of_reach_names_what_is_in_reach(run: Callable, net: Net) -> None:
    words = ("prune", net("residual"), *SMALL, "--round-to", "1", "--json")
    result = run(*words, "--macs", "2")
    assert result.code == 2
    [(least, whole, share)] = re.findall(
        r"ask for ([\d,]+) to ([\d,]+) of them, or for a share between (0\.\d\d) and 1", result.err
    )
    done = json.loads(run(*words, "--macs", least.replace(",", "")).out)
    assert done["before"]["macs"] == int(whole.replace(",", ""))
    assert done["after"]["macs"] == int(least.replace(",", ""))
    assert json.loads(run(*words, "--macs", share).out)["after"]["macs"] == done["after"]["macs"]


def test_both_are_timed_where_asked(run: Callable, net: Net) -> None:
    words = ("prune", net("residual"), *SMALL, "--ratio", "0.5", "--round-to", "1")
    result = run(*words, "--measure", "--runtime", "eager", "--json")
    assert result.code == 0, result.err
    rows = json.loads(result.out)["timings"]["rows"]
    assert [(row["runtime"], row["model"]) for row in rows] == [
        ("eager", "unpruned"), ("eager", "pruned"),
    ]  # fmt: skip
    assert json.loads(run(*words, "--json").out)["timings"] is None


def test_a_share_of_the_time(run: Callable, net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """Timed by counting here: a test must not depend on the machine."""
    from refold.workload import workload_of

    asked: list[str] = []

    def counting(example: Any, runtime: str) -> Any:
        asked.append(runtime)

        def share(first: Any, second: Any) -> float:
            cost = [workload_of(model, example).macs or 0 for model in (first, second)]
            return cost[1] / cost[0]

        return share

    monkeypatch.setattr("refold.bench.share_of_time", counting)
    words = ("prune", net("residual"), *SMALL, "--latency", "0.8", "--round-to", "1", "--json")
    for others in ([], ["onnxruntime"]):
        runtimes = ["eager", *others]
        done = json.loads(run(*words, *(f"--runtime={name}" for name in runtimes)).out)
        assert done["after"]["macs"] <= 0.8 * done["before"]["macs"]
        assert list(dict.fromkeys(row["runtime"] for row in done["timings"]["rows"])) == runtimes
    assert asked == ["eager", "eager"]  # the first one chooses


CLASSIFIER = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
"""


def test_it_trains_on_and_what_it_wrote_is_a_model(run: Callable, tmp_path: Path) -> None:
    data = folders(tmp_path / "data")
    (tmp_path / "net.py").write_text(CLASSIFIER)
    done = run(
        "prune", f"{tmp_path / 'net.py'}:build", "--importance", "l1", "--ratio", "0.5",
        "--round-to", "1", "--then-train", "--data", data, "--epochs", "1", "--set",
        "augment.size=12", "--set", "deploy.files=[safetensors]", "--workers", "0", "--cpu",
        "--tracker", "none", "-o", tmp_path / "run",
    )  # fmt: skip
    assert done.code == 0, done.err
    stages = ["before pruning", "pruned", "trained on", "deployed"]
    table = done.out[done.out.index("pruned and trained on") :]
    assert [word for word in stages if f"\n  {word}" in table] == stages
    small = tmp_path / "run" / "deploy.safetensors"
    read = run("convert", small, "-o", tmp_path / "again.safetensors", "--json")
    assert read.code == 0, read.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert json.loads(read.out)["after"]["macs"] == summary["pruning"]["after"]["macs"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data", "photos"), "pass --then-train"),
        (("--then-train",), "resnet18 is untrained"),
        (("--then-train", "--checkpoint", "run", "--data", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_train_on_is_said_first(
    run: Callable, words: tuple[str, ...], said: str
) -> None:
    result = run("prune", "resnet18", "--ratio", "0.5", *words)
    assert result.code == 2
    assert said in result.err
    finished = run("prune", "net.onnx", "--ratio", "0.5", *words)
    assert "is a finished file" in finished.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--ratio", "0"), "no channel is dead, and --ratio 0 drops those alone"),
        (("--threshold", "0"), "no channel is worth as little as 0"),
        (("--ratio", "0.5", "--round-to", "2", "--floor", "4"), "layers keep a multiple of 2"),
        (("--ratio", "0.1", "--round-to", "1"), "so small a share is no whole channel"),
    ],
)
def test_why_nothing_was_dropped_is_said(
    run: Callable, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))\n"
    )
    always = ("--importance", "l1", "--input-size", "3x9x9")
    done = run("prune", f"{tmp_path / 'net.py'}:build", *always, *words)
    assert done.code == 0, done.err
    assert f"nothing was dropped: {said}" in done.out
    assert "less accurate" not in done.err


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--runtime", "eager"], "--runtime says where --measure and --latency time"),
        (["--workers", "0"], "--workers and --tracker are for further training"),
        (["--tracker", "none"], "--workers and --tracker are for further training"),
    ],
)
def test_an_option_without_use_is_refused(run: Callable, words: list[str], what: str) -> None:
    result = run("prune", "resnet8", "--ratio", "0.5", *words)
    assert (result.code, what in result.err) == (2, True)
