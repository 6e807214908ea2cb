"""`.onnx` through torch's own exporter, checked in ONNX Runtime."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from refold.errors import ExportError, InputError
from refold.exporting.formats.onnx_graph import name_axes, name_values, strip
from refold.exporting.formats.opset import limit_ir, lower
from refold.exporting.formats.pt2 import trace
from refold.exporting.libraries import require
from refold.exporting.provenance import keyed
from refold.exporting.request import Request
from refold.inputs import Arguments, parted, tensors

_PROTOBUF_LIMIT = 2_000_000_000  # bytes one ONNX file may hold; more goes to a file beside it
_SILENT = 4  # ONNX Runtime logs nothing: its errors are raised as well
_OLDEST = 7  # an opset that ONNX Runtime still runs
_FOLDS = ("ConvBNFusion", "ConvMulFusion", "ConvAddFusion", "MatmulBNFusion")  # of ONNX Runtime


def write_onnx(request: Request, path: Path) -> None:
    """Write the graph with its weights in one file, then run it."""
    require("onnxscript", "onnx")
    require("onnxruntime", "onnx")
    exporter: Any = torch.onnx  # its signature is only partly typed
    program = exporter.export(
        trace(request), dynamo=True, verbose=False, opset_version=request.opset
    )
    _finish(program.model, request)
    stored = chain(request.model.parameters(), request.model.buffers())
    is_large = sum(tensor.nbytes for tensor in stored) > _PROTOBUF_LIMIT
    program.save(path, external_data=is_large)
    try:
        session = onnx_session(path)
    except Exception as error:
        raise ExportError(_unopened(request, error, path)) from error
    request.check("ONNX Runtime", lambda inputs: run_onnx(session, inputs))


def _finish(model: Any, request: Request) -> None:
    """Strip what is private from a graph, name its values and axes, and say where it is from."""
    if request.opset is not None:
        if model.opset_imports[""] > request.opset:  # its own conversion gave up
            lower(model, request.opset)
        limit_ir(model, request.opset)
    strip(model)
    name_axes(model, request.axes.shapes)
    name_values(model, request.inputs, request.outputs)
    model.metadata_props.update(keyed(request.provenance))


def require_opset(opset: int | None) -> None:
    """Refuse a version of the operators that nobody writes.

    Raises:
        InputError: saying which are written.
    """
    if opset is None:
        return
    newest = int(require("onnx", "onnx").defs.onnx_opset_version())
    if not _OLDEST <= opset <= newest:
        raise InputError(f"opset {opset} is not one that onnx writes: use {_OLDEST} to {newest}")


def _unopened(request: Request, error: Exception, path: Path) -> str:
    """Return why ONNX Runtime refused a file, its temporary path left out."""
    reason = str(error).replace(str(path), path.name).replace(str(path.parent), "")
    weights = chain(request.model.parameters(), request.model.buffers())
    is_double = any(tensor.dtype == torch.float64 for tensor in weights)
    return (
        f"ONNX Runtime cannot open {type(request.model).__name__} as .onnx: "
        f"{reason.splitlines()[0][:300]}"
        + "; it has few layers in float64: export model.float()"
        * is_double
    )


def write_unfused(model: nn.Module, inputs: Arguments, path: Path) -> Path:
    """Write a model's layers one by one, norms included, for `onnx_session(path, fuse=False)`.

    It is what a network is compared with, not what one ships: torch's exporter folds norms into
    convolutions by itself. Return the path.
    """
    require("onnxscript", "onnx")
    exporter: Any = torch.onnx
    args, kwargs = parted(inputs)
    names = [f"input{number}" for number in range(len(tensors(inputs)))]
    exporter.export(
        model,
        args,
        path,
        kwargs=kwargs,
        dynamo=True,
        optimize=False,
        verbose=False,
        input_names=names,
    )
    return path


def onnx_session(path: Path, *, fuse: bool = True) -> Any:
    """Open a file in ONNX Runtime on the CPU, with as many threads as torch uses.

    Args:
        path: of the file.
        fuse: whether ONNX Runtime may fold norms, scales and shifts into layers.
    """
    onnxruntime = require("onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(
        path,
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=[] if fuse else list(_FOLDS),
    )


def run_onnx(session: Any, inputs: Arguments) -> list[Tensor]:
    """Call a session on tensors in the order of the model's arguments."""
    names = [node.name for node in session.get_inputs()]
    arrays = [tensor.numpy() for tensor in tensors(inputs)]
    results = session.run(None, dict(zip(names, arrays, strict=True)))
    return [torch.as_tensor(result) for result in results]
