"""Run a recorded network on its example and note what every step gives and costs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from refold.graph import Capture
from refold.inputs import Arguments, parted, tensors
from refold.workload import counting

_SAMPLES = 8192
"""How many numbers of each value are kept: those of a thousand layers fit into memory."""


@dataclass(frozen=True, eq=False)
class Value:
    """What one step gave.

    Args:
        shape: of the value.
        macs: multiply-adds of the step.
        peak: the largest magnitude in the value.
        samples: numbers of the value, taken at even distances.
    """

    shape: tuple[int, ...]
    macs: int
    peak: float
    samples: Tensor

    def difference(self, other: Value) -> float | None:
        """Return the largest difference of the numbers kept, over the peak; None if shapes differ.

        Args:
            other: what should equal it.
        """
        if self.shape != other.shape or not self.samples.numel():
            return None
        largest = float((self.samples - other.samples).abs().max())
        return largest / self.peak if self.peak else largest


Values = dict[fx.Node, Value]


def run(
    capture: Capture | None,
    inputs: Arguments | None,
    known: Mapping[fx.Node, Any] | None = None,
    module: nn.Module | None = None,
) -> Values:
    """Return what every step of a capture gives on the inputs; nothing where it does not run.

    Args:
        capture: of a whole network in the precision that is wanted.
        inputs: what it was recorded on.
        known: what steps give that torch cannot run.
        module: the modules to run, where the capture's own have another precision.
    """
    if capture is None or inputs is None:
        return {}
    runner = _Runner(capture, known or {}, module)
    try:
        with torch.no_grad():
            runner.run(*_fed(inputs))
    except Exception:  # a picture without numbers is better than none
        return {}
    return runner.values


def _fed(inputs: Arguments) -> list[Any]:
    """Return what the graph of a call takes: the arguments that hold tensors, each as it is."""
    args, kwargs = parted(inputs)
    return [value for value in (*args, *kwargs.values()) if tensors(value)]


class _Runner(fx.Interpreter):
    """Runs a capture and keeps some numbers of every value."""

    def __init__(
        self, capture: Capture, known: Mapping[fx.Node, Any], module: nn.Module | None
    ) -> None:
        runs = capture.graph_module(module)
        super().__init__(runs, garbage_collect_values=True)
        self.originals = dict(zip(runs.graph.nodes, capture.graph.nodes, strict=True))
        self.known = known
        self.values: Values = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one step and note its value."""
        original = self.originals[n]
        with counting() as counter:
            is_known = original in self.known
            value: Any = self.known[original] if is_known else super().run_node(n)
        if isinstance(value, Tensor) and value.is_floating_point():
            macs = counter.get_total_flops() // 2
            self.values[original] = _noted(value.detach(), macs)
        return value


def _noted(value: Tensor, macs: int) -> Value:
    flat = value.flatten()
    step = max(1, -(-flat.numel() // _SAMPLES))
    peak = float(flat.abs().max()) if flat.numel() else 0.0
    return Value(tuple(value.shape), macs, peak, flat[::step].double().cpu().clone())


def clock(
    captures: list[Capture | None], inputs: Arguments | None, rounds: int = 7
) -> list[dict[fx.Node, float]]:
    """Return milliseconds of every step of some captures, the median of rounds that take turns.

    Args:
        captures: of the networks; they run in torch, one step after another.
        inputs: that all of them take.
        rounds: how often each of them runs, after one run to warm up.
    """
    if inputs is None or any(capture is None for capture in captures):
        return [{} for _ in captures]
    watches = [_Watch(capture) for capture in captures if capture is not None]
    try:
        with torch.no_grad():
            for turn in range(rounds + 1):
                for watch in watches:
                    watch.keeps = turn > 0
                    watch.run(*_fed(inputs))
    except Exception:  # as above: a page without times
        return [{} for _ in captures]
    return [watch.medians() for watch in watches]


class _Watch(fx.Interpreter):
    """Runs a capture and times every step."""

    def __init__(self, capture: Capture) -> None:
        module = capture.graph_module()
        super().__init__(module, garbage_collect_values=True)
        self.originals = dict(zip(module.graph.nodes, capture.graph.nodes, strict=True))
        self.seconds: dict[fx.Node, list[float]] = {}
        self.keeps = True

    def run_node(self, n: fx.Node) -> Any:
        """Run one step and note the time that it took."""
        start = time.perf_counter()
        value: Any = super().run_node(n)
        if self.keeps:
            self.seconds.setdefault(self.originals[n], []).append(time.perf_counter() - start)
        return value

    def medians(self) -> dict[fx.Node, float]:
        """Return the median of each step, in milliseconds."""
        return {node: 1e3 * sorted(times)[len(times) // 2] for node, times in self.seconds.items()}
