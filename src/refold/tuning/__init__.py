"""Find out which exact forms of a network are fastest in a runtime, by measuring them."""

from __future__ import annotations

from refold.tuning.choices import Choices, tuned
from refold.tuning.file import load_tuning, save_tuning
from refold.tuning.measuring import Speed
from refold.tuning.outcome import Trial, Tuning
from refold.tuning.search import tune

__all__ = ["Choices", "Speed", "Trial", "Tuning", "load_tuning", "save_tuning", "tune", "tuned"]
