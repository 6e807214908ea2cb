"""Inputs of another rank: (N, C) and (N, L, C) are one to a linear layer, and not to a norm."""

from __future__ import annotations

from functools import partial
from typing import cast

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from refold.graph.calls import canonical
from refold.graph.copies.modules import submodule
from refold.graph.trace.code.unseen import catches
from refold.graph.trace.frames import ancestors, map_tree
from refold.graph.trace.other_runs.shapes import shaped, with_axis
from refold.graph.trace.other_runs.variants import Recorded, Snapshot, Variant
from refold.graph.trace.overridden import layer_class
from refold.graph.trace.recorder.recorder import Recorder
from refold.ranked import CONVS

_ROW_NORMS = (nn.BatchNorm1d, nn.SyncBatchNorm)
_NORM_CALLS = ("batch_norm", "functional_batch_norm", "native_norm")
_OTHER_AXIS = (
    "the network takes (N, C) and (N, L, C), where the norm scales another axis than the layer "
    "beside it; a flatten(1) in front of them would fix which"
)


def takes_no_more_axes(recorder: Recorder, first: Snapshot) -> bool:
    """Say whether inputs with one axis more certainly fail: a convolution reads one as it is.

    The code around that asks for no sizes, and catches no error.

    Args:
        recorder: the recorded run.
        first: its graph as it was recorded.
    """
    asking = recorder.asks_rank | recorder.gives_size | recorder.hands_shape | recorder.loses_size
    for value in (node for node in first.order if node.op == "placeholder"):
        rank = len(recorder.shapes.get(value, ()))
        for reader in first.readers[value]:
            if reader.op != "call_module" or first.args[reader][0][:1] != (value,):
                continue
            layer = submodule(recorder.root, str(reader.target))
            around = ancestors(first.home[reader])
            if (
                layer_class(layer) is CONVS.get(rank - 2)
                and asking.isdisjoint(around)
                and not any(catches(getattr(frame.module, frame.method)) for frame in around)
            ):
                return True
    return False


class Ranks:
    """The runs of one recorded root on inputs with one axis more."""

    def __init__(self, recorded: Recorded) -> None:
        self._recorded, self._root = recorded, recorded.recorder.root
        self._deeper: dict[int, Variant | None] = {}

    def objection(self, places: list[fx.Node]) -> str | None:
        """Say why a norm of rows, (N, C), is not part of a linear layer if it may see (N, L, C).

        A linear layer works along the last axis, the norm along the second.
        """
        for node in places:
            shape = self._recorded.recorder.shapes.get(node, ())
            if len(shape) == 2 and self._is_norm(node):
                if shape[1] not in self._deeper:
                    self._deeper[shape[1]] = self._one_axis_more(shape[1])
                deeper = self._deeper[shape[1]]
                if deeper is not None and len(deeper.shape(node) or ()) != 2:
                    return _OTHER_AXIS
        return None

    def _is_norm(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return layer_class(submodule(self._root, str(node.target))) in _ROW_NORMS
        call = canonical(node)
        return call is not None and call.name in _NORM_CALLS

    def _one_axis_more(self, size: int) -> Variant | None:
        """Record the root on inputs with one axis more, of this many entries, if it takes them."""
        recorded = self._recorded
        if takes_no_more_axes(recorded.recorder, recorded.first):
            return None
        other = partial(shaped, change=partial(with_axis, size=size))
        try:
            found = self._recorded.again.run(map_tree(other, self._recorded.arguments), whole=True)
        except Exception:  # then the code takes no such input
            return None
        for node in found.graph.nodes:  # a recording does not run norms
            if node.op == "call_module" and self._is_norm(node):
                norm = submodule(self._root, str(node.target))
                if found.shapes[node][1] != cast(_BatchNorm, norm).num_features:
                    return None
        return self._recorded.beside("", found)
