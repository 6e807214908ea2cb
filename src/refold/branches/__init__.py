"""Branches in place of plain convolutions, and the way back; blocks by name."""

from __future__ import annotations

from refold.branches.building import builder
from refold.branches.collapsing import collapse
from refold.branches.expanding import expand, expand_plan
from refold.branches.norm_statistics import calibrate
from refold.branches.registry import block_factory, list_blocks, register_block

__all__ = [
    "block_factory",
    "builder",
    "calibrate",
    "collapse",
    "expand",
    "expand_plan",
    "list_blocks",
    "register_block",
]
