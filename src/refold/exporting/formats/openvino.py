"""`.xml` and its `.bin`: OpenVINO's format, converted from torch.export without a detour."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refold.errors import ExportError, one_line
from refold.exporting.formats.pt2 import trace
from refold.exporting.formats.signals import own_signal_stack
from refold.exporting.libraries import require
from refold.exporting.names import unique
from refold.exporting.provenance import version
from refold.exporting.request import Request
from refold.inputs import Arguments, tensors


def write_openvino(request: Request, path: Path) -> None:
    """Write graph and weights in the model's precision, then run them."""
    openvino = require("openvino", "openvino")
    program = trace(request)
    try:
        converted = openvino.convert_model(program)
    except Exception as error:
        raise ExportError(_unconverted(request, error)) from error
    shapes: dict[Any, Any] = {}
    for port, shape in zip(list(converted.inputs), request.axes.shapes, strict=True):
        if shape is None:  # an absent argument has a port, too
            converted.remove_parameter(port.get_node())
        else:
            free = [-1 if isinstance(size, str) else size for size in shape]
            shapes[port] = openvino.PartialShape(free)
    converted.reshape(shapes)
    _name(converted, request)
    converted.set_rt_info("", "conversion_parameters")  # what the converter was called with
    for key, text in {"version": version(), **request.provenance}.items():
        converted.set_rt_info(text, ["refold", key])
    openvino.serialize(converted, path, path.with_suffix(".bin"))
    compiled = openvino_model(path)
    request.check("OpenVINO", lambda inputs: run_openvino(compiled, inputs))


def _unconverted(request: Request, error: Exception) -> str:
    """Return what OpenVINO has no operator for, else the first line of its report."""
    name = type(request.model).__name__
    found = re.findall(r"No conversion rule found for operations: (.+)", str(error))
    if found:
        return f"OpenVINO has no operator for {found[0].strip()}, which {name} calls; write .onnx"
    return f"OpenVINO cannot convert {name}: {one_line(error)}"


def _name(converted: Any, request: Request) -> None:
    names = unique([*request.inputs, *request.outputs])
    ports = [*converted.inputs, *converted.outputs]
    if len(ports) != len(names):  # an output that is not a tensor has a port, too
        return
    for port in ports:
        port.get_tensor().set_names(set())
    for port, name in zip(ports, names, strict=True):
        port.get_tensor().add_names({name})
    for port, name in zip(converted.inputs, request.inputs, strict=True):
        port.get_node().set_friendly_name(name)


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
