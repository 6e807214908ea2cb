"""Time models against each other, fairly: in turn, paired, on the runtimes people ship with."""

from __future__ import annotations

from refold.bench.clock import benchmark
from refold.bench.plot import plot
from refold.bench.runtimes import RUNTIMES
from refold.bench.table import BenchmarkRow, BenchmarkTable, Machine, Spread

__all__ = ["RUNTIMES", "BenchmarkRow", "BenchmarkTable", "Machine", "Spread", "benchmark", "plot"]
