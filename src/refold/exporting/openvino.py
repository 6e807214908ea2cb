"""`.xml` and its `.bin`: OpenVINO's format, converted from torch.export without a detour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from refold.exporting.batch import Batch
from refold.exporting.libraries import require
from refold.exporting.pt2 import trace
from refold.exporting.signals import own_signal_stack
from refold.inputs import Arguments, tensors


def write_openvino(model: nn.Module, batch: Batch, path: Path) -> None:
    """Write graph and weights in full precision, then run them."""
    openvino = require("openvino", "openvino")
    converted = openvino.convert_model(trace(model, batch))
    shapes: dict[Any, Any] = {}
    for port, shape in zip(list(converted.inputs), batch.free_shapes, strict=True):
        if shape is None:  # an absent argument has a port, too
            converted.remove_parameter(port.get_node())
        else:
            shapes[port] = openvino.PartialShape(list(shape))
    converted.reshape(shapes)
    openvino.serialize(converted, path, path.with_suffix(".bin"))
    compiled = openvino_model(path)
    batch.check(model, "OpenVINO", lambda inputs: run_openvino(compiled, inputs))


def openvino_model(path: Path) -> Any:
    """Compile a file for the CPU in float32, with as many threads as torch uses."""
    openvino = require("openvino", "openvino")
    options = {
        "INFERENCE_PRECISION_HINT": "f32",  # newer CPUs would round to bfloat16 unasked
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    with own_signal_stack():
        return openvino.Core().compile_model(path, "CPU", options)


def run_openvino(compiled: Any, inputs: Arguments) -> list[Tensor]:
    """Call a compiled model on tensors in the order of the model's arguments."""
    with own_signal_stack():
        results = compiled([tensor.numpy() for tensor in tensors(inputs)])
    return [torch.as_tensor(results[port]) for port in compiled.outputs]
