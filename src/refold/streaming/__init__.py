"""Networks larger than the memory: folded from files of weights into files of weights."""

from __future__ import annotations

from refold.streaming.conversion import Streamed, fold_checkpoint
from refold.streaming.shards import SHARD_BYTES, target_of, write_shards
from refold.streaming.weightless import without_weights

__all__ = [
    "SHARD_BYTES",
    "Streamed",
    "fold_checkpoint",
    "target_of",
    "without_weights",
    "write_shards",
]
