"""One table: what each rule accepts, and what it refuses and why; every rule must have a row."""

from __future__ import annotations

from rules.cases_joins import JOINS
from rules.cases_moves import MOVES
from rules.cases_rows import ROWS
from rules.cases_series import SERIES
from rules.parts import Row

CASES: dict[str, Row] = {**SERIES, **JOINS, **MOVES, **ROWS}
