"""What a table says of its own figures: how sure they are, and under which conditions."""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import median

import pytest
import torch
from torch import nn

from refold.bench import BenchmarkRow, BenchmarkTable, Machine, Pairs, Spread, benchmark, plot
from refold.bench.memory import peak_mib
from refold.bench.table import NO_DIFFERENCE, UNSURE, interval
from refold.errors import InputError

MACHINE = Machine("a processor", "Linux", 2, "cpu", "float32", {"torch": "2"})


@pytest.mark.slow
def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    """Drawn from a population with the median 1: 95 of 100 intervals should hold it."""
    drawn = random.Random(1)
    held = 0
    for _ in range(100):
        low, high = interval([drawn.lognormvariate(0, 0.1) for _ in range(25)])
        held += low <= 1 <= high
    assert 88 <= held <= 99


def test_the_same_figures_have_the_same_interval_around_their_median() -> None:
    values = [1.1, 1.2, 1.15, 1.4, 1.19]
    low, high = interval(values)
    assert (low, high) == interval(values)
    assert min(values) <= low <= median(values) <= high <= max(values)


@pytest.mark.parametrize(
    ("sure", "verdict"),
    [((0.99, 1.01), NO_DIFFERENCE), ((1.3, 1.35), ""), ((0.6, 0.62), ""), ((1.1, 1.9), UNSURE)],
)
def test_a_ratio_says_whether_to_believe_it(sure: tuple[float, float], verdict: str) -> None:
    time = Spread(1.0, 1.0, 1.0)
    row = BenchmarkRow("eager", "after", time, 0.5, 1.0, Spread(*sure, sure[1]), sure)
    table = BenchmarkTable((row,), ((1, 3, 8, 8),), 30, MACHINE, 3)
    assert row.verdict == verdict
    assert table.to_dict()["rows"][0]["verdict"] == verdict
    text = str(table)
    assert "30 rounds in turn after 3 calls to warm up" in text
    assert verdict in text
    assert ("let other work end" in text) == (verdict == UNSURE)


def test_processor_time_and_memory_stand_beside_the_clock() -> None:
    models = {"a": nn.Conv2d(3, 4, 3).eval(), "b": nn.Conv2d(3, 64, 3).eval()}
    table = benchmark(models, torch.ones(1, 3, 256, 256), ("eager",), rounds=3)
    record = json.loads(json.dumps(table.to_dict()))
    assert all(row["cpu_milliseconds"] > 0 for row in record["rows"])
    assert record["rows"][0]["interval"] is None  # what the others are compared with
    few, many = (row["peak_mib"] for row in record["rows"])
    # Its answer alone takes 64 * 254 * 254 * 4 bytes: 15.8 MiB.
    assert few is None or (many > 14 and many > few)


def test_memory_is_that_of_the_inputs_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has used its GPU before still takes the process's memory on the CPU."""
    for name, value in {
        "is_available": True,
        "is_initialized": True,
        "memory_allocated": 0,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: 3 * 2**20)
    for name in ("reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    held: list[torch.Tensor] = []

    def call() -> None:
        held.append(torch.ones(16 * 2**20, dtype=torch.uint8))

    on_cpu = peak_mib(call, torch.device("cpu"))
    assert on_cpu is None or on_cpu > 15
    assert peak_mib(call, torch.device("cuda", 0)) == 3.0


def test_the_table_has_the_memory_of_the_inputs_device(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[torch.device] = []
    monkeypatch.setattr("refold.bench.clock.peak_mib", lambda call, device: devices.append(device))
    for given in (torch.ones(1), {"input": torch.ones(1)}):
        benchmark({"a": nn.ReLU().eval()}, given, ("eager",), rounds=1)
    Pairs(torch.ones(1), "eager", 1)(nn.ReLU().eval(), nn.ReLU().eval())
    assert devices == [torch.device("cpu")] * 4


@pytest.mark.slow
def test_tables_are_drawn_side_by_side(tmp_path: Path) -> None:
    rows = [BenchmarkRow("eager", name, Spread(1.0, 2.0, 3.0)) for name in ("before", "after")]
    rows.append(BenchmarkRow("openvino", "after", skipped="it is not installed"))
    tables = [BenchmarkTable(tuple(rows), ((n, 3, 8, 8),), 5, MACHINE) for n in (1, 8)]
    for number in range(2):
        plot(tables, tmp_path / f"{number}.svg")
    text = (tmp_path / "0.svg").read_text()
    assert text == (tmp_path / "1.svg").read_text()
    assert all(word in text for word in ("before", "after", "8x3x8x8"))
    with pytest.raises(InputError, match="not a picture that can be drawn"):
        plot(tables, tmp_path / "a.txt")
    with pytest.raises(InputError, match="no model has figures"):
        plot([BenchmarkTable((rows[2],), (), 5, MACHINE)], tmp_path / "b.svg")
    assert len(list(tmp_path.iterdir())) == 2
