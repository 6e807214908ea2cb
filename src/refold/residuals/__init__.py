"""Remove residual connections: the same function as a chain of plain layers."""

from __future__ import annotations

from refold.residuals.functions import sliced_function
from refold.residuals.passes import ResidualPass
from refold.residuals.removing import Removal, removal, remove_residuals

__all__ = ["Removal", "ResidualPass", "removal", "remove_residuals", "sliced_function"]
