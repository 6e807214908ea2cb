"""A run that is stopped or killed at random moments, again and again, ends as if it never was.

`benchmarks/kill_resume.py` does the same at scale, and has the processes that are killed here.
"""

from __future__ import annotations

import contextlib
import random
import signal
from pathlib import Path

import pytest

from kill_resume import SIGNALS, Nursery, allowed
from refold.training.stopping import Ears, Stopped, deafen
from training.pictures import folders
from training.runs import AtStep, Fragile, last, same_bits, tiny

pytestmark = pytest.mark.slow


def test_ten_kills_at_random_moments_change_no_bit(tmp_path: Path) -> None:
    """Each time the same command goes on, until the run is over."""
    moments = random.Random(7)
    with Nursery(tmp_path, epochs=8) as nursery:
        status, seconds, said = nursery.train("whole")
        assert status == 0, said
        begun, told = False, list[str]()
        for number in (*SIGNALS, *SIGNALS, signal.SIGKILL, signal.SIGTERM):
            delay = moments.uniform(0, seconds / 6)
            status, _, said = nursery.train("run", resume=begun, number=number, delay=delay)
            assert allowed(number, status), said
            assert "Traceback" not in said
            told.append(said)
            begun = True
        status, _, said = nursery.train("run", resume=True)
        assert status == 0, said
        assert nursery.result("run") == nursery.result("whole")
        assert "continues after step" in "".join(told)
        again, _, said = nursery.train("run")  # and without --resume nothing is lost
        assert (again, "already holds a run" in said) == (2, True)
        assert nursery.result("run") == nursery.result("whole")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_each_signal_finishes_the_step_and_saves(tmp_path: Path, number: signal.Signals) -> None:
    data = folders(tmp_path / "data", train=11, val=2)
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped:
        tiny(tmp_path / "run", data, model=Fragile(), reporter=AtStep(3, number))
    assert signal.getsignal(number) == before
    assert stopped.value.number == number
    assert int(last(tmp_path / "run")["optimizer.0.momentum_buffer"].numel()) > 0
    name = (tmp_path / "run" / "checkpoints" / "last").read_text()
    assert name == "step-000000003.safetensors\n"


@pytest.mark.parametrize("ignored", [signal.SIGHUP, signal.SIGINT])
def test_what_this_process_ignores_stays_ignored(ignored: signal.Signals) -> None:
    """`nohup refold train` and, in a script, `refold train &`."""
    before = signal.signal(ignored, signal.SIG_IGN)
    try:
        with Ears() as ears:
            signal.raise_signal(ignored)
            assert not ears.asked
            signal.raise_signal(signal.SIGTERM)
            assert ears.number == signal.SIGTERM
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)  # a second one stops at once
                pytest.fail("it did not")
        assert signal.getsignal(ignored) == signal.SIG_IGN
    finally:
        signal.signal(ignored, before)


def test_a_worker_leaves_every_signal_to_the_process_it_reads_for() -> None:
    heard = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in heard}
    try:
        deafen(0)
        assert {signal.getsignal(number) for number in heard} == {signal.SIG_IGN}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_stop_at_the_end_of_an_epoch_loses_no_judgement(tmp_path: Path) -> None:
    data = folders(tmp_path / "data", train=11, val=2)
    runs = {name: tmp_path / name for name in ("whole", "run")}
    import torch

    def net() -> Fragile:
        torch.manual_seed(5)
        return Fragile()

    tiny(runs["whole"], data, model=net())
    with pytest.raises(Stopped):
        tiny(runs["run"], data, model=net(), reporter=AtStep(5, signal.SIGTERM))
    rows = (runs["run"] / "metrics.jsonl").read_text()
    assert rows.count('"kind": "epoch"') == 1
    tiny(runs["run"], data, model=net(), resume=True)
    assert same_bits(last(runs["run"]), last(runs["whole"]))
    text = (runs["run"] / "metrics.jsonl").read_text()
    assert text.count('"kind": "epoch"') == 2
