"""Time models against each other, fairly: in turn, paired, on the runtimes people ship with."""

from __future__ import annotations

from .clock import benchmark
from .runtimes import RUNTIMES
from .table import BenchmarkRow, BenchmarkTable, Machine, Spread

__all__ = ["RUNTIMES", "BenchmarkRow", "BenchmarkTable", "Machine", "Spread", "benchmark"]
