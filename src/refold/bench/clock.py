"""The clock: models take turns, so that a busy machine slows all of them alike."""

from __future__ import annotations

import math
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from torch import nn

from refold.bench.machine import describe_machine
from refold.bench.memory import peak_mib
from refold.bench.runtimes import FILE_RUNTIMES, RUNTIMES, USUAL, Call, Opener
from refold.bench.table import BenchmarkRow, BenchmarkTable, Spread, interval
from refold.equivalence import prepared
from refold.errors import InputError, one_line
from refold.exporting import quiet
from refold.inputs import Arguments, required, tensors

Subject = tuple[nn.Module, Arguments]

_WARM_UP = 3
_SAMPLE_SECONDS = 0.002  # shorter calls are repeated: the clock's own cost must not show


def benchmark(
    models: Mapping[str, nn.Module],
    example_inputs: Any,
    runtimes: Sequence[str] = USUAL,
    *,
    rounds: int = 30,
) -> BenchmarkTable:
    """Time models on several runtimes, in interleaved rounds, against the first of them.

    Args:
        models: Name to module, in eval mode; the first is what the others are compared with.
        example_inputs: A tensor, a tuple or list of arguments, or a mapping of them by name; they
            are what is timed, batch included.
        runtimes: Some of `eager`, `onnxruntime`, `onnxruntime-unfused`, `openvino`, `inductor`.
            One that is missing or cannot run a model is a row with the reason.
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
    first, inputs = next(iter(subjects.values()))
    rows: list[BenchmarkRow] = []
    for runtime in runtimes:
        with ExitStack() as folders:
            make = {
                name: partial(RUNTIMES[runtime].of_model, model, own, _folder(folders))
                for name, (model, own) in subjects.items()
            }
            rows += _time_runtime(runtime, make, inputs, rounds)
    return _table(rows, first, inputs, runtimes, rounds)


def _folder(until: ExitStack) -> Path:
    """Return an empty folder for the files of one model."""
    # Some systems remove no file that is mapped.
    made = tempfile.TemporaryDirectory(prefix="refold-", ignore_cleanup_errors=True)
    return Path(until.enter_context(made))


class Pairs:
    """Times pairs of models in turn; each model is written for the runtime once.

    To write a file for a runtime takes far longer than to time it.

    Args:
        example_inputs: As for `benchmark`.
        runtime: Where they run, as for `benchmark`.
        rounds: How often each is timed.

    Raises:
        InputError: When the runtime is unknown or `rounds` is not positive.
        RefusedError: From a call, when a model is in training mode.

    Examples:
        >>> net = nn.Linear(2, 3).eval()
        >>> Pairs(torch.ones(1, 2), "eager", 3)(net, net).runtime
        'eager'
    """

    def __init__(self, example_inputs: Any, runtime: str, rounds: int) -> None:
        _check({"first": None, "second": None}, (runtime,), rounds)
        self._inputs, self._runtime, self._rounds = example_inputs, runtime, rounds
        self._ready = dict[int, Opener]()  # by the model, which may not be hashable

    def __call__(self, first: nn.Module, second: nn.Module) -> BenchmarkRow:
        """Return the row of the second model, whose ratio is to the first."""
        make = {"first": self._maker(first), "second": self._maker(second)}
        inputs = required(first, self._inputs)
        return _time_runtime(self._runtime, make, inputs, self._rounds)[-1]

    def _maker(self, model: nn.Module) -> Callable[[], Opener]:
        known = self._ready.get(id(model))
        if known is not None:
            return lambda: known
        inputs = prepared(model, self._inputs)[1]

        def make() -> Opener:
            until = ExitStack()
            weakref.finalize(model, until.close)
            opener = RUNTIMES[self._runtime].of_model(model, inputs, _folder(until))
            self._ready[id(model)] = opener
            weakref.finalize(model, self._ready.pop, id(model), None)
            return opener

        return make


def share_of_time(
    example_inputs: Any, runtime: str = "onnxruntime", *, rounds: int = 10
) -> Callable[[nn.Module, nn.Module], float]:
    """Return what measures the share of a network's time that another one takes, both in turn.

    Args:
        example_inputs: As for `benchmark`.
        runtime: Where they run, as for `benchmark`.
        rounds: How often each is timed.

    Raises:
        InputError: From what is returned, when the runtime cannot run one of them.

    Examples:
        >>> share = share_of_time(torch.ones(1, 2), "eager", rounds=3)
        >>> share(nn.Linear(2, 3).eval(), nn.Linear(2, 3).eval()) > 0
        True
    """

    def share(first: nn.Module, second: nn.Module) -> float:
        row = Pairs(example_inputs, runtime, rounds)(first, second)
        if row.speedup is None:
            raise InputError(f"the network cannot be timed in {runtime}: {row.skipped}")
        return 1 / row.speedup.median

    return share


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
        openers = {name: partial(FILE_RUNTIMES[runtime], p, inputs) for name, p in files.items()}
        make = {name: partial(_itself, opener) for name, opener in openers.items()}
        rows += _time_runtime(runtime, make, inputs, rounds)
    return _table(rows, nn.Module(), inputs, runtimes, rounds)


def _itself(opener: Opener) -> Opener:
    return opener


def _table(
    rows: list[BenchmarkRow],
    model: nn.Module,
    inputs: Arguments,
    runtimes: Sequence[str],
    rounds: int,
) -> BenchmarkTable:
    machine = describe_machine(model, inputs, tuple(runtimes))
    shapes = tuple(tuple(tensor.shape) for tensor in tensors(inputs))
    return BenchmarkTable(tuple(rows), shapes, rounds, machine, _WARM_UP)


def _check(
    models: Mapping[str, object],
    runtimes: Sequence[str],
    rounds: int,
    known: tuple[str, ...] = tuple(RUNTIMES),
) -> None:
    if not isinstance(cast(Any, models), Mapping):
        raise InputError(
            f"models must be given by name, such as {{'mine': model}}, got {type(models).__name__}"
        )
    if isinstance(runtimes, str):
        raise InputError(f"runtimes are several: give ({runtimes!r},)")
    unknown = [runtime for runtime in runtimes if runtime not in known]
    if unknown or not models or rounds < 1:
        raise InputError(
            f"benchmark got {len(models)} models, {rounds} rounds and unknown runtimes {unknown}; "
            f"give at least one model and one round, and runtimes among {', '.join(known)}"
        )


def _time_runtime(
    runtime: str, make: Mapping[str, Callable[[], Opener]], inputs: Arguments, rounds: int
) -> list[BenchmarkRow]:
    # Models of one class share a budget of compilations; beyond it torch silently runs eagerly.
    torch.compiler.reset()
    openers: dict[str, Opener] = {}
    calls: dict[str, Call] = {}
    skipped: dict[str, str] = {}
    openings = min(rounds, RUNTIMES[runtime].openings)
    with torch.no_grad():
        for name, maker in make.items():
            try:
                with quiet():
                    openers[name] = maker()
                calls[name] = _opened(openers[name])
            except Exception as error:  # whatever a runtime cannot do is a result, not an accident
                skipped[name] = one_line(error)
        times = {name: _Times() for name in calls}
        for at in range(openings if calls else 0):
            if at:
                _open_again(calls, openers, at)
            _take_turns(calls, times, (rounds + at) // openings)
        for name, call in calls.items():
            times[name].peak = peak_mib(call, _device_of(inputs))
    names = list(make)
    rows: list[BenchmarkRow] = []
    for name in names:
        if name in skipped:
            rows.append(BenchmarkRow(runtime, name, skipped=f"{name}: {skipped[name]}"))
        else:
            base = None if name == names[0] else times.get(names[0])
            rows.append(_row(runtime, name, times[name], base))
    if names[0] in times:
        rows[0] = replace(rows[0], speedup=Spread(1.0, 1.0, 1.0))
    return rows


def _device_of(inputs: Arguments) -> torch.device:
    """Return where a call on these inputs runs: on the GPU where any of them lies there."""
    devices = (tensor.device for tensor in tensors(inputs))
    return next((device for device in devices if device.type == "cuda"), torch.device("cpu"))


@dataclass
class _Times:
    """Seconds per call of a model: by the wall, for each opening; of the processor; its memory."""

    wall: list[list[float]] = field(default_factory=list[list[float]])
    cpu: list[float] = field(default_factory=list[float])
    peak: float | None = None


def _row(runtime: str, name: str, own: _Times, base: _Times | None) -> BenchmarkRow:
    pairs = zip(base.wall, own.wall, strict=True) if base else ()
    ratios = [[first / this for first, this in zip(*pair, strict=True)] for pair in pairs]
    return BenchmarkRow(
        runtime,
        name,
        Spread.of([1e3 * value for value in chain.from_iterable(own.wall)]),
        1e3 * median(own.cpu),
        own.peak,
        Spread.of([*chain.from_iterable(ratios)]) if ratios else None,
        interval(*ratios) if ratios else None,
    )


def _opened(opener: Opener) -> Call:
    with quiet():
        call = opener()
        for _ in range(_WARM_UP):  # compiles, allocates, fills caches
            call()
    return call


def _open_again(calls: dict[str, Call], openers: Mapping[str, Opener], at: int) -> None:
    """Open all models anew, once what was open of them is gone.

    In the same order each would be given the same memory again.
    """
    names = _turn([name for name in openers if name in calls], at)
    calls.clear()
    calls.update({name: _opened(openers[name]) for name in names})


def _turn(names: Sequence[str], at: int) -> list[str]:
    """Return names in the order of a turn: each comes first, last and behind each other one.

    Examples:
        >>> ["".join(_turn("AB", at)) for at in range(4)]
        ['AB', 'BA', 'BA', 'AB']
        >>> ["".join(_turn("ABC", at)) for at in range(6)]
        ['ABC', 'CBA', 'BCA', 'ACB', 'CAB', 'BAC']
    """
    first = at // 2 % len(names)
    turned = [*names[first:], *names[:first]]
    return turned[::-1] if at % 2 else turned


def _take_turns(calls: Mapping[str, Call], times: Mapping[str, _Times], rounds: int) -> None:
    """Note what every model takes in every round.

    The order changes: what a large network leaves in the caches slows whoever comes behind it.
    """
    names = list(times)
    done = len(times[names[0]].cpu) if names else 0
    repeats = {
        name: max(1, math.ceil(_SAMPLE_SECONDS / _seconds(call, 1)[0]))
        for name, call in calls.items()
    }
    for name in calls:
        times[name].wall.append([])
    for at in range(done, done + rounds):
        for name in _turn(names, at):
            wall, cpu = _seconds(calls[name], repeats[name])
            times[name].wall[-1].append(wall)
            times[name].cpu.append(cpu)


def _seconds(call: Call, repeats: int) -> tuple[float, float]:
    """Return the seconds of a call: by the wall, and of all threads of this process."""
    _wait_for_device()
    start, busy = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        call()
    _wait_for_device()
    wall, cpu = time.perf_counter() - start, time.process_time() - busy
    return wall / repeats, cpu / repeats


def _wait_for_device() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
