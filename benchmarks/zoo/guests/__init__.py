"""Networks of other packages, and what folding makes of them: what `ecosystems.py` runs."""

from __future__ import annotations

from zoo.guests import dense, hugging_face, specialists, vision
from zoo.guests.guest import Guest

GUESTS: tuple[Guest, ...] = (
    *hugging_face.guests(),
    *vision.guests(),
    *dense.guests(),
    *specialists.guests(),
)
"""Every network of the table, a package after the other."""
