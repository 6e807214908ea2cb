"""Time models against each other, fairly: in turn, paired, on the runtimes people ship with."""

from __future__ import annotations

from refold.bench.clock import Pairs, benchmark, benchmark_files, share_of_time
from refold.bench.drawing import plot
from refold.bench.machine import describe_machine
from refold.bench.runtimes import FILE_RUNTIMES, RUNTIMES
from refold.bench.table import BenchmarkRow, BenchmarkTable, Machine, Spread

__all__ = [
    "FILE_RUNTIMES",
    "RUNTIMES",
    "BenchmarkRow",
    "BenchmarkTable",
    "Machine",
    "Pairs",
    "Spread",
    "benchmark",
    "benchmark_files",
    "describe_machine",
    "plot",
    "share_of_time",
]
