"""The articles' comparisons: what they vary, their runs, their tables and plots."""

from __future__ import annotations

from .catalogue import MANIFOLD, STUDIES, Study, Variant
from .report import Report, Row
from .study import study

__all__ = ["MANIFOLD", "STUDIES", "Report", "Row", "Study", "Variant", "study"]
