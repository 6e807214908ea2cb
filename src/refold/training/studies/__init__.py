"""The articles' comparisons: what they vary, their runs, their tables and plots."""

from __future__ import annotations

from refold.training.studies.catalogue import MANIFOLD, STUDIES, Study, Variant
from refold.training.studies.comparison import study
from refold.training.studies.report import Report, Row

__all__ = ["MANIFOLD", "STUDIES", "Report", "Row", "Study", "Variant", "study"]
