"""Pruning: what is masked is dropped, exactly."""

from __future__ import annotations

from .dead import Dropped, drop_dead_channels, dropping

__all__ = ["Dropped", "drop_dead_channels", "dropping"]
