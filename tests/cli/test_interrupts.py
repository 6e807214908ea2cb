"""A signal ends a command quietly, with the exit code of its kind, and nothing half-written."""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from refold.cli.interrupts import Interrupted, Interrupts

pytestmark = pytest.mark.slow

CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
Net = Callable[[str], str]


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number, _ in CODES]


@pytest.mark.parametrize(("number", "code"), CODES)
def test_a_signal_while_writing_leaves_no_file(
    run: Callable, net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    before, seen = handlers(), []

    def interrupt(handle: int) -> None:
        seen.append([path.name for path in tmp_path.rglob("*")])
        signal.raise_signal(number)

    monkeypatch.setattr(os, "fsync", interrupt)  # the file is written, and not yet in its place
    words = (net("branchy"), "--input-size", "3x9x9", "-o", tmp_path / "net.safetensors")
    result = run("convert", *words)
    assert "net.safetensors" in seen[0]
    assert (result.code, result.out) == (code, "")
    assert "refold:" not in result.err
    assert not list(tmp_path.iterdir())
    assert handlers() == before


def test_what_a_library_makes_of_a_signal_is_no_error(
    run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> list[str]:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error
        return []

    monkeypatch.setattr("refold.cli.models.zoo_names", fail)
    result = run("models")
    assert (result.code, result.out, result.err) == (130, "", "")


def test_an_echo_does_not_cut_the_cleaning_up_short() -> None:
    with Interrupts() as interrupts:
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
    assert interrupts.exit_code == 129


def test_a_later_signal_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Interrupts() as interrupts:
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)
        now[0] = 5.0
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)
    assert interrupts.received == signal.SIGTERM


def test_a_signal_that_nobody_should_hear_stays_unheard() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGHUP)
        assert interrupts.received is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_in_a_callback_comes_again(capsys: pytest.CaptureFixture[str]) -> None:
    class Callback:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    with Interrupts() as interrupts:
        Callback()  # Python cannot raise here, and would print a traceback instead
        with pytest.raises(Interrupted):
            time.sleep(20)
    assert interrupts.exit_code == 130
    assert capsys.readouterr().err == ""


def test_what_a_library_drops_is_raised_again() -> None:
    """NumPy clears whatever it meets while it looks at a sequence; others have `except: pass`."""

    class Rows(list[int]):
        def __len__(self) -> int:
            signal.raise_signal(signal.SIGTERM)
            return 0

    with Interrupts() as interrupts:
        np.array([Rows()])
        with pytest.raises(Interrupted):
            time.sleep(20)
    assert interrupts.exit_code == 143


def test_cleaning_up_is_not_interrupted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refold.cli.interrupts.AGAIN_SECONDS", 0.01)
    done: list[str] = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            with contextlib.suppress(OSError):
                time.sleep(0.1)
            done.append("cleaned up")

    with Interrupts(), pytest.raises(Interrupted):
        work()
    assert done


def test_a_forked_worker_ends_as_if_nobody_heard() -> None:
    with Interrupts():
        worker = os.fork()
        if worker == 0:
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                os._exit(7)
        _, status = os.waitpid(worker, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGTERM


def interrupt_after(seconds: float) -> tuple[int, list[str]]:
    """Interrupt `refold models` after its guard stands; return its code and what it complained of.

    What Python imports is said on standard error as it goes, so the moment is known.
    """
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "refold", "models", "--names"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        remarks = cast("io.TextIOWrapper", process.stderr)
        for line in remarks:
            if line.rstrip().endswith(" refold.cli.entry"):
                break
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        rest = remarks.read().splitlines()
        process.wait()
    return process.returncode, [line for line in rest if not line.startswith("import time:")]


@pytest.mark.parametrize("at", range(10))
def test_ctrl_c_is_quiet_from_the_first_import_on(at: int) -> None:
    code, complaints = interrupt_after(random.Random(at).uniform(0.0, 0.3))
    assert (code, complaints) == (130, [])


@pytest.mark.zoo
@pytest.mark.parametrize("at", range(100))
def test_ctrl_c_is_quiet_at_any_moment(at: int) -> None:
    code, complaints = interrupt_after(random.Random(at).uniform(0.0, 6.0))
    assert code in (0, 130)  # it may have ended by itself
    assert complaints == []
