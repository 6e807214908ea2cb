"""The clock: models take turns, so that a busy machine slows all of them alike."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from refold.bench.machine import describe_machine
from refold.bench.runtimes import FILE_RUNTIMES, RUNTIMES, Call
from refold.bench.table import BenchmarkRow, BenchmarkTable, Spread
from refold.equivalence import prepared
from refold.errors import InputError, one_line
from refold.exporting import quiet
from refold.inputs import Arguments, tensors

Subject = tuple[nn.Module, Arguments]

_WARM_UP = 3
_SAMPLE_SECONDS = 0.002  # shorter calls are repeated: the clock's own cost must not show


def benchmark(
    models: Mapping[str, nn.Module],
    example_inputs: Any,
    runtimes: Sequence[str] = tuple(RUNTIMES),
    *,
    rounds: int = 30,
) -> BenchmarkTable:
    """Time models on several runtimes, in interleaved rounds, against the first of them.

    Args:
        models: Name to module, in eval mode; the first is what the others are compared with.
        example_inputs: A tensor, a tuple or list of arguments, or a mapping of them by name; they
            are what is timed, batch included.
        runtimes: Some of `eager`, `onnxruntime`, `openvino`, `inductor`. One that is missing or
            cannot run a model is a row with the reason.
        rounds: How often each model is measured.

    Raises:
        InputError: When there is no model, a runtime is unknown, `rounds` is not positive, or a
            model cannot run on the inputs.
        RefusedError: When a model is in training mode.

    Examples:
        >>> models = {"a": nn.Linear(2, 3).eval(), "b": nn.Linear(2, 30).eval()}
        >>> table = benchmark(models, torch.ones(1, 2), ("eager",), rounds=3)
        >>> [row.model for row in table.rows]
        ['a', 'b']
    """
    _check(models, runtimes, rounds)
    subjects: dict[str, Subject] = {
        name: (model, prepared(model, example_inputs, f"model {name!r}")[1])
        for name, model in models.items()
    }
    rows: list[BenchmarkRow] = []
    for runtime in runtimes:
        with tempfile.TemporaryDirectory(prefix="refold-") as folder:
            make = {
                name: partial(RUNTIMES[runtime], model, inputs, Path(folder))
                for name, (model, inputs) in subjects.items()
            }
            rows += _time_runtime(runtime, make, rounds)
    first, inputs = next(iter(subjects.values()))
    return _table(rows, first, inputs, runtimes, rounds)


def benchmark_files(
    files: Mapping[str, Path],
    inputs: Arguments,
    runtimes: Sequence[str] = tuple(FILE_RUNTIMES),
    *,
    rounds: int = 30,
) -> BenchmarkTable:
    """Time exported files as `benchmark` times models.

    Args:
        files: Name to .onnx file; the first is what the others are compared with.
        inputs: Tensors in the order of the file's inputs.
        runtimes: Some of `onnxruntime`, `openvino`.
        rounds: How often each file is measured.

    Raises:
        InputError: When there is no file, a runtime is unknown, or `rounds` is not positive.
    """
    _check(files, runtimes, rounds, tuple(FILE_RUNTIMES))
    rows: list[BenchmarkRow] = []
    for runtime in runtimes:
        make = {name: partial(FILE_RUNTIMES[runtime], p, inputs) for name, p in files.items()}
        rows += _time_runtime(runtime, make, rounds)
    return _table(rows, nn.Module(), inputs, runtimes, rounds)


def _table(
    rows: list[BenchmarkRow],
    model: nn.Module,
    inputs: Arguments,
    runtimes: Sequence[str],
    rounds: int,
) -> BenchmarkTable:
    machine = describe_machine(model, inputs, tuple(runtimes))
    shapes = tuple(tuple(tensor.shape) for tensor in tensors(inputs))
    return BenchmarkTable(tuple(rows), shapes, rounds, machine)


def _check(
    models: Mapping[str, object],
    runtimes: Sequence[str],
    rounds: int,
    known: tuple[str, ...] = tuple(RUNTIMES),
) -> None:
    unknown = [runtime for runtime in runtimes if runtime not in known]
    if unknown or not models or rounds < 1:
        raise InputError(
            f"benchmark got {len(models)} models, {rounds} rounds and unknown runtimes {unknown}; "
            f"give at least one model and one round, and runtimes among {', '.join(known)}"
        )


def _time_runtime(
    runtime: str, make: Mapping[str, Callable[[], Call]], rounds: int
) -> list[BenchmarkRow]:
    # Models of one class share a budget of compilations; beyond it torch silently runs eagerly.
    torch.compiler.reset()
    calls: dict[str, Call] = {}
    skipped: dict[str, str] = {}
    with torch.no_grad():
        for name, maker in make.items():
            try:
                calls[name] = _prepare(maker)
            except Exception as error:  # whatever a runtime cannot do is a result, not an accident
                skipped[name] = one_line(error)
        seconds = _take_turns(calls, rounds)
    base = seconds.get(next(iter(make)))
    rows: list[BenchmarkRow] = []
    for name in make:
        if name in skipped:
            rows.append(BenchmarkRow(runtime, name, skipped=f"{name}: {skipped[name]}"))
            continue
        own = seconds[name]
        ratios = [first / this for first, this in zip(base, own, strict=True)] if base else None
        milliseconds = Spread.of([1e3 * value for value in own])
        rows.append(
            BenchmarkRow(runtime, name, milliseconds, Spread.of(ratios) if ratios else None)
        )
    return rows


def _prepare(make: Callable[[], Call]) -> Call:
    with quiet():
        call = make()
        for _ in range(_WARM_UP):  # compiles, allocates, fills caches
            call()
    return call


def _take_turns(calls: Mapping[str, Call], rounds: int) -> dict[str, list[float]]:
    """Return seconds per call for every model and round: A B C, A B C, ..."""
    repeats = {
        name: max(1, math.ceil(_SAMPLE_SECONDS / _seconds(call, 1))) for name, call in calls.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(_seconds(call, repeats[name]))
    return seconds


def _seconds(call: Call, repeats: int) -> float:
    _wait_for_device()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    _wait_for_device()
    return (time.perf_counter() - start) / repeats


def _wait_for_device() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
