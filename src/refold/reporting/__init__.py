"""The report: one HTML file that shows what a verb made of a network, layer by layer."""

from __future__ import annotations

from refold.reporting.comparison import Comparison
from refold.reporting.files import report_onnx
from refold.reporting.page import write_report
from refold.reporting.verb import report

__all__ = ["Comparison", "report", "report_onnx", "write_report"]
