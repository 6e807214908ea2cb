"""How a run behaves, whatever it trains: none of it changes the result."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Habits:
    """How a run behaves, whatever it trains.

    Args:
        save_minutes: how long it may go on without a checkpoint; there is one after each epoch.
        save_steps: write one after so many steps, too; 0 for none.
        log_steps: measure one step of so many.
        workers: processes that read images.
        fsdp: whether several processes share the weights, too, and not only each batch.
    """

    save_minutes: float = 10.0
    save_steps: int = 0
    log_steps: int = 50
    workers: int = 2
    fsdp: bool = False
