"""Ways to run a model: each makes a call without arguments that runs it once on the inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from refold.equivalence import prepared
from refold.errors import MissingDependencyError
from refold.exporting import (
    export,
    onnx_session,
    openvino_model,
    run_onnx,
    run_openvino,
    write_unfused,
)
from refold.inputs import Arguments, tensors

Call = Callable[[], object]


def _eager(model: nn.Module, inputs: Arguments, folder: Path) -> Call:
    copied, given = prepared(model, inputs)
    return lambda: copied(*given)


def _inductor(model: nn.Module, inputs: Arguments, folder: Path) -> Call:
    copied, given = prepared(model, inputs)
    on_gpu = any(tensor.is_cuda for tensor in tensors(given))
    # On a GPU, small layers wait for their launches: CUDA graphs are what one deploys.
    compiled = torch.compile(copied, dynamic=False, mode="reduce-overhead" if on_gpu else None)
    return lambda: compiled(*given)


def _onnxruntime(model: nn.Module, inputs: Arguments, folder: Path) -> Call:
    _require_cpu(inputs)
    return _onnxruntime_file(export(model, folder / "model.onnx", inputs, dynamic="batch"), inputs)


def _unfused(model: nn.Module, inputs: Arguments, folder: Path) -> Call:
    """Run every layer as it stands: the exporter and ONNX Runtime both fold norms by themselves."""
    _require_cpu(inputs)
    session = onnx_session(write_unfused(model, inputs, folder / "unfused.onnx"), fuse=False)
    return lambda: run_onnx(session, inputs)


def _openvino(model: nn.Module, inputs: Arguments, folder: Path) -> Call:
    _require_cpu(inputs)
    return _openvino_file(export(model, folder / "model.xml", inputs, dynamic="batch"), inputs)


def _require_cpu(inputs: Arguments) -> None:
    devices = {tensor.device.type for tensor in tensors(inputs)}
    if devices != {"cpu"}:
        raise MissingDependencyError(
            f"it runs on the CPU only and the inputs are on {', '.join(sorted(devices))}"
        )


RUNTIMES: dict[str, Callable[[nn.Module, Arguments, Path], Call]] = {
    "eager": _eager,
    "onnxruntime": _onnxruntime,
    "onnxruntime-unfused": _unfused,
    "openvino": _openvino,
    "inductor": _inductor,
}
USUAL = ("eager", "onnxruntime", "openvino", "inductor")
"""Those that people ship with."""


def _onnxruntime_file(path: Path, inputs: Arguments) -> Call:
    session = onnx_session(path)
    return lambda: run_onnx(session, inputs)


def _openvino_file(path: Path, inputs: Arguments) -> Call:
    compiled = openvino_model(path)
    return lambda: run_openvino(compiled, inputs)


FILE_RUNTIMES: dict[str, Callable[[Path, Arguments], Call]] = {
    "onnxruntime": _onnxruntime_file,
    "openvino": _openvino_file,
}
"""Those that run an .onnx file."""
