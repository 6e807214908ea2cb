"""What a verb did to a file, and what both files cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

from torch import nn

from refold.graph import Capture, submodule
from refold.onnx_files.report import OnnxReport
from refold.onnx_files.sizes import inferred_batch
from refold.onnx_files.translation.network import Network
from refold.ranked import CONVS, SCATTERS
from refold.workload import Workload


@dataclass(frozen=True, eq=False, kw_only=True)
class OnnxAccount(OnnxReport):
    """What a verb did to a file that was folded first.

    Args:
        cost_before: of the folded file: the parameters of its layers, and their multiply-adds for
            one example; None where the file leaves sizes beside the batch open.
        cost_after: the same of the result.
        silenced: the channels that were chosen to go, by layer.
    """

    cost_before: Workload
    cost_after: Workload
    silenced: dict[str, list[int]] = field(default_factory=dict[str, list[int]])

    def to_dict(self) -> dict[str, Any]:
        """Return the account as plain data, ready for JSON."""
        costs = {"cost_before": asdict(self.cost_before), "cost_after": asdict(self.cost_after)}
        return super().to_dict() | costs | {"silenced": self.silenced}


def cost_of(network: Network, capture: Capture) -> Workload:
    """Return what the layers of a file cost: their parameters, and multiply-adds for one example.

    Args:
        network: the file as it was read.
        capture: its graph today; shapes must be known.
    """
    batch = inferred_batch(network.file.model)
    parameters, macs = 0, 0
    for call in capture.graph.nodes:
        if call.op != "call_module":
            continue
        module = submodule(capture.module, str(call.target))
        parameters += sum(tensor.numel() for tensor in module.parameters())
        for layer in module.modules():
            reads = isinstance(layer, tuple(SCATTERS.values()))  # each input is spread, not summed
            shape = capture.shapes.get(call.all_input_nodes[0] if reads else call)
            work = None if shape is None else _work(layer, shape)
            batch = None if work is None else batch
            macs += work or 0
    return Workload(parameters, None if batch is None else macs // batch)


def _work(layer: Any, shape: tuple[int, ...]) -> int | None:
    """Return the multiply-adds of one layer on a value of this shape."""
    if isinstance(layer, nn.Linear):
        return prod(shape[:-1]) * layer.weight.numel()
    if isinstance(layer, (*CONVS.values(), *SCATTERS.values())):
        return shape[0] * prod(shape[2:]) * layer.weight.numel()
    return 0
