"""Pruning: choose channels, silence them, and drop exactly what is silent."""

from __future__ import annotations

from refold.pruning.channels import Pruning, Slimmed, prune, pruning
from refold.pruning.dead_channels import drop_dead_channels, dropping
from refold.pruning.layers import Importance, Layer
from refold.pruning.norms import restore_norms
from refold.pruning.slimming import channel_mask, clear_masks, slimming_penalty

__all__ = [
    "Importance",
    "Layer",
    "Pruning",
    "Slimmed",
    "channel_mask",
    "clear_masks",
    "drop_dead_channels",
    "dropping",
    "prune",
    "pruning",
    "restore_norms",
    "slimming_penalty",
]
