"""Types that code names, told from those that it reads: `x.to(torch.float32)` after `x.dtype`.

A run in float32 cannot tell them apart; a run in another precision can: what stays is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from refold.graph.trace.frames import Frame, frame_of, handed, leaves, map_tree, walk
from refold.graph.trace.other_runs.variants import Snapshot, Variant
from refold.graph.trace.recorder.notebook import READ_TYPE
from refold.graph.trace.recorder.recorder import Recorder


def write_types_named(recorder: Recorder, first: Snapshot, variant: Variant) -> bool:
    """Write down the types that both runs were given as those which the code names.

    Args:
        recorder: the recorded run.
        first: its graph as it was recorded, brought up to date.
        variant: the other run.

    Returns:
        Whether there are any.
    """
    found = [*_named(variant)]
    for node, read, named in found:
        node.args = _with(node.args, read, named)
        node.kwargs = _with(node.kwargs, read, named)
    if found:
        _drop_unread(recorder.root_frame, (read for _, read, _ in found))
        first.take(recorder.graph)
    return bool(found)


def _with(given: Any, read: fx.Node, named: torch.dtype) -> Any:
    return map_tree(lambda value: named if value is read else value, given)


def _named(variant: Variant) -> Iterator[tuple[fx.Node, fx.Node, torch.dtype]]:
    """Yield the calls given a type that only the recorded run has read, with the read, the type."""
    for node, other in variant.same.items():
        if not isinstance(node, fx.Node) or not isinstance(other, fx.Node):
            continue
        ours, theirs = leaves(variant.first.args[node]), leaves(variant.second.args[other])
        for one, two in zip(ours, theirs, strict=False):
            is_read = isinstance(one, fx.Node) and isinstance(two, torch.dtype)
            if is_read and one.meta.get(READ_TYPE) is two:
                yield node, one, two


def _drop_unread(root: Frame, reads: Iterable[fx.Node]) -> None:
    kept = handed(root)
    for read in {read: None for read in reads if not read.users and read not in kept}:
        following = read.next
        for frame in walk(root):
            frame.reads = [
                replace(one, following=following) if one.following is read else one
                for one in frame.reads
            ]
        frame_of(read).nodes.remove(read)
        read.graph.erase_node(read)
