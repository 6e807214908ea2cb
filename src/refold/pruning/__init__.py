"""Pruning: choose channels, silence them, and drop exactly what is silent."""

from __future__ import annotations

from refold.pruning.channels import Pruning, Slimmed, prune, pruning, silence, slimmed
from refold.pruning.choice import Amount, Floor, check_step, choose, closest, within
from refold.pruning.dead_channels import DeadChannelPass, drop_dead_channels, dropping
from refold.pruning.layers import Importance, Layer, filter_norms, layers_of
from refold.pruning.narrowing import narrow
from refold.pruning.norms import join_norms, restore_norms
from refold.pruning.slimming import channel_mask, clear_masks, slimming_penalty

__all__ = [
    "Amount",
    "DeadChannelPass",
    "Floor",
    "Importance",
    "Layer",
    "Pruning",
    "Slimmed",
    "channel_mask",
    "check_step",
    "choose",
    "clear_masks",
    "closest",
    "drop_dead_channels",
    "dropping",
    "filter_norms",
    "join_norms",
    "layers_of",
    "narrow",
    "prune",
    "pruning",
    "restore_norms",
    "silence",
    "slimmed",
    "slimming_penalty",
    "within",
]
