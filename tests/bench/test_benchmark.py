"""The table holds what was measured, what was skipped and why; never a claim about speed."""

from __future__ import annotations

import json
import signal
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from refold.bench import RUNTIMES, Pairs, Spread, benchmark
from refold.bench.machine import describe_machine
from refold.bench.runtimes import Call, Opener, Runtime
from refold.cli import bench as command
from refold.errors import InputError, RefusedError

pytestmark = pytest.mark.slow

EXAMPLE = torch.ones(1, 3, 8, 8)


@pytest.fixture
def models() -> dict[str, nn.Module]:
    return {
        "before": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval(),
        "after": nn.Conv2d(3, 4, 3).eval(),
    }


class _Counting(nn.Module):
    """Writes its name into a shared log at every call."""

    def __init__(self, log: list[str], name: str) -> None:
        super().__init__()
        self.write = lambda: log.append(name)  # a function: copies of the model share its log

    def forward(self, x: Tensor) -> Tensor:
        self.write()
        return x


def test_models_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refold.bench.clock._SAMPLE_SECONDS", 1e-12)
    log: list[str] = []
    models = {name: _Counting(log, name).eval() for name in "AB"}
    benchmark(models, EXAMPLE, ("eager",), rounds=4)
    assert log[-10:-2] == list("ABBABAAB")  # then once for the memory


def test_ratios_are_paired_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    # The machine gets slower every round, whose turns are AB, BA, BA; B always takes half of A.
    clock = iter([0.0, 1.0] * 2 + [0, 2, 0, 1, 0, 10, 0, 20, 0, 100, 0, 200])
    monkeypatch.setattr("refold.bench.clock.time.perf_counter", lambda: next(clock))
    table = benchmark({"A": nn.ReLU().eval(), "B": nn.ReLU().eval()}, EXAMPLE, ["eager"], rounds=3)
    assert table.row("eager", "A").speedup == Spread(1.0, 1.0, 1.0)
    assert table.row("eager", "B").speedup == Spread(2.0, 2.0, 2.0)
    assert table.row("eager", "B").milliseconds == Spread(5.5e3, 10e3, 55e3)


def test_a_model_that_comes_again_is_made_ready_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[nn.Module] = []

    def of_model(model: nn.Module, inputs: object, folder: object) -> Opener:
        built.append(model)
        return lambda: lambda: None

    monkeypatch.setitem(RUNTIMES, "eager", Runtime(of_model))
    first, second, third = (nn.ReLU().eval() for _ in range(3))
    pairs = Pairs(EXAMPLE, "eager", 1)
    for pair in [(first, second), (first, third), (third, first)]:
        assert pairs(*pair).speedup
    assert built == [first, second, third]
    with pytest.raises(RefusedError, match="training mode"):
        pairs(first, nn.ReLU())


@pytest.mark.parametrize("rounds", [2, 8])
def test_files_are_opened_anew_while_they_are_timed(
    rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a runtime puts weights and maps is a matter of luck: each opening draws again."""
    now = [0.0]
    monkeypatch.setattr("refold.bench.clock.time.perf_counter", lambda: now[0])
    opened: list[type] = []
    alive: list[weakref.ref[Call]] = []

    def of_model(model: nn.Module, inputs: object, folder: object) -> Opener:
        def open_model() -> Call:
            opened.append(type(model))
            is_lucky = opened == [nn.ReLU, nn.ReLU6]  # the first opening of B

            def call() -> None:
                now[0] += 1.0 if is_lucky else 4.0

            alive.append(weakref.ref(call))
            assert sum(ref() is not None for ref in alive) <= 2
            return call

        return open_model

    monkeypatch.setitem(RUNTIMES, "eager", Runtime(of_model, openings=4))
    models = {"A": nn.ReLU().eval(), "B": nn.ReLU6().eval()}
    row = benchmark(models, EXAMPLE, ("eager",), rounds=rounds).row("eager", "B")
    a, b = nn.ReLU, nn.ReLU6  # in the same order each would be given the same memory again
    assert opened == [a, b, b, a, b, a, a, b][: 2 * min(rounds, 4)]
    assert row.speedup is not None
    assert row.speedup.median == (2.5 if rounds == 2 else 1.0)
    assert row.interval == (1.0, 4.0)


@pytest.mark.parametrize("in_pairs", [False, True])
def test_each_model_has_files_of_its_own(in_pairs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def of_model(model: nn.Module, inputs: object, folder: Path) -> Opener:
        path = folder / "model"
        path.write_text(type(model).__name__)
        return lambda: read.append(path.read_text()) or (lambda: None)

    monkeypatch.setitem(RUNTIMES, "eager", Runtime(of_model, openings=2))
    models = [nn.ReLU().eval(), nn.ReLU6().eval()]
    if in_pairs:
        Pairs(EXAMPLE, "eager", 2)(*models)
    else:
        benchmark(dict(zip("AB", models, strict=True)), EXAMPLE, ("eager",), rounds=2)
    assert read == ["ReLU", "ReLU6", "ReLU6", "ReLU"]


def test_every_runtime_gives_figures(models: dict[str, nn.Module]) -> None:
    table = benchmark(models, EXAMPLE, ("eager", "onnxruntime", "openvino"), rounds=2)
    assert [(row.runtime, row.model) for row in table.rows] == [
        (runtime, model)
        for runtime in ("eager", "onnxruntime", "openvino")
        for model in ("before", "after")
    ]
    assert all(row.milliseconds and row.speedup and not row.skipped for row in table.rows)
    plain = json.loads(json.dumps(table.to_dict()))
    assert plain["machine"]["dtype"] == "float32"
    assert plain["machine"]["threads"] == torch.get_num_threads()
    assert {*plain["machine"]["versions"]} == {"torch", "onnxruntime", "openvino"}
    assert plain["shapes"] == [[1, 3, 8, 8]]
    text = str(table)
    assert text.startswith("runtime")
    assert "after" in text
    assert "input 1x3x8x8, 2 rounds in turn" in text


@pytest.mark.zoo  # it compiles C++ for half a minute
def test_inductor_gives_figures_or_a_reason(models: dict[str, nn.Module]) -> None:
    table = benchmark(models, EXAMPLE, ("inductor",), rounds=2)
    assert all(bool(row.skipped) != bool(row.milliseconds) for row in table.rows)


def test_what_cannot_run_is_in_the_table_with_its_reason(
    models: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    table = benchmark(models, EXAMPLE, ("eager", "onnxruntime"), rounds=1)
    assert "pip install 'refold[onnx]'" in table.row("onnxruntime", "after").skipped
    assert str(table).count("onnxruntime  skipped: ") == 2


def test_a_first_model_without_figures_leaves_the_others_theirs(
    models: dict[str, nn.Module],
) -> None:
    class Untraceable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    table = benchmark(
        {"odd": Untraceable().eval(), "after": models["after"]}, EXAMPLE, ["onnxruntime"], rounds=1
    )
    odd, after = table.rows
    assert odd.skipped.startswith("odd: torch.export cannot trace")
    assert after.milliseconds is not None
    assert after.speedup is None
    assert "after" in str(table)


def test_the_models_are_left_as_they_were() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(inplace=True)).eval()
    x = -torch.ones(1, 3, 2, 2)
    benchmark({"a": model}, x, ("eager",), rounds=1)
    assert torch.equal(x, -torch.ones(1, 3, 2, 2))
    assert next(model.parameters()).requires_grad


def test_bad_calls_are_refused(models: dict[str, nn.Module]) -> None:
    with pytest.raises(InputError, match=r"unknown runtimes \['tpu'\].*onnxruntime"):
        benchmark(models, EXAMPLE, ("tpu",))
    with pytest.raises(InputError, match="got 0 models"):
        benchmark({}, EXAMPLE)
    with pytest.raises(InputError, match=r"Sequential cannot run .*\(1, 4, 8, 8\)"):
        benchmark(models, torch.ones(1, 4, 8, 8))
    with pytest.raises(RefusedError, match=r"'b' is in training mode .*call model\.eval\(\)"):
        benchmark({"b": nn.ReLU()}, EXAMPLE)


def test_what_people_ship_with_is_the_default() -> None:
    assert benchmark.__defaults__ == (("eager", "onnxruntime", "openvino", "inductor"),)
    assert set(RUNTIMES) == {*benchmark.__defaults__[0], "onnxruntime-unfused"}


def test_the_command_line_names_every_runtime() -> None:
    """It lists them by hand: `--help` must not wait for torch."""
    assert set(command.RUNTIME_NAMES) == set(RUNTIMES)


def test_a_runtime_says_the_version_of_the_library_behind_it() -> None:
    found = describe_machine(nn.Conv2d(3, 4, 1), (EXAMPLE,), ("onnxruntime-unfused",)).versions
    assert {*found} == {"torch", "onnxruntime"}


def test_a_process_survives_a_signal_after_openvino(models: dict[str, nn.Module]) -> None:
    benchmark(models, EXAMPLE, ("openvino",), rounds=1)
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        signal.raise_signal(signal.SIGINT)  # without the mending: a segmentation fault
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT]
