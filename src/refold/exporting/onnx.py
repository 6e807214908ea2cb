"""`.onnx` through torch's own exporter, checked in ONNX Runtime."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from refold.exporting.batch import Batch
from refold.exporting.libraries import require
from refold.exporting.pt2 import trace
from refold.inputs import Arguments, tensors

_PROTOBUF_LIMIT = 2_000_000_000  # bytes one ONNX file may hold; more goes to a file beside it
_SILENT = 3  # ONNX Runtime's log level for errors only


def write_onnx(model: nn.Module, batch: Batch, path: Path) -> None:
    """Write the graph with its weights in one file, then run it."""
    require("onnxscript", "onnx")
    require("onnxruntime", "onnx")
    exporter: Any = torch.onnx  # its signature is only partly typed
    traced = trace(model, batch)
    shapes = batch.dynamic_shapes  # again, or the axis would be named after a symbol
    program = exporter.export(traced, dynamo=True, dynamic_shapes=shapes, verbose=False)
    stored = chain(model.parameters(), model.buffers())
    is_large = sum(tensor.nbytes for tensor in stored) > _PROTOBUF_LIMIT
    program.save(path, external_data=is_large)
    session = onnx_session(path)
    batch.check(model, "ONNX Runtime", lambda inputs: run_onnx(session, inputs))


def onnx_session(path: Path) -> Any:
    """Open a file in ONNX Runtime on the CPU, with as many threads as torch uses."""
    onnxruntime = require("onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_onnx(session: Any, inputs: Arguments) -> list[Tensor]:
    """Call a session on tensors in the order of the model's arguments."""
    names = [node.name for node in session.get_inputs()]
    arrays = [tensor.numpy() for tensor in tensors(inputs)]
    results = session.run(None, dict(zip(names, arrays, strict=True)))
    return [torch.as_tensor(result) for result in results]
