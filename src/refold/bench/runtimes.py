"""Ways to run a model: each makes a call without arguments that runs it once on the inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from refold.equivalence import prepared
from refold.errors import InputError
from refold.exporting import (
    export,
    onnx_session,
    openvino_model,
    run_onnx,
    run_openvino,
    write_unfused,
)
from refold.inputs import Arguments, call, tensors

Call = Callable[[], object]


def _eager(model: nn.Module, inputs: Arguments, folder: Path) -> Call:
    copied, given = prepared(model, inputs)
    return lambda: call(copied, given)


def _inductor(model: nn.Module, inputs: Arguments, folder: Path) -> Call:
    copied, given = prepared(model, inputs)
    on_gpu = any(tensor.is_cuda for tensor in tensors(given))
    # On a GPU, small layers wait for their launches: CUDA graphs are what one deploys.
    compiled = torch.compile(copied, dynamic=False, mode="reduce-overhead" if on_gpu else None)
    return lambda: call(compiled, given)


def _onnxruntime(model: nn.Module, inputs: Arguments, folder: Path) -> Call:
    _require_cpu(inputs)
    return _onnxruntime_file(export(model, folder / "model.onnx", inputs, dynamic="batch"), inputs)


def _unfused(model: nn.Module, inputs: Arguments, folder: Path) -> Call:
    """Run every layer as it stands: the exporter and ONNX Runtime both fold norms by themselves."""
    _require_cpu(inputs)
    session = onnx_session(write_unfused(model, inputs, folder / "unfused.onnx"), fuse=False)
    return lambda: run_onnx(session, inputs)


def _onnxruntime_file(path: Path, inputs: Arguments) -> Call:
    session = onnx_session(path)
    return lambda: run_onnx(session, inputs)


def _openvino(model: nn.Module, inputs: Arguments, folder: Path) -> Call:
    _require_cpu(inputs)
    return _openvino_file(export(model, folder / "model.xml", inputs, dynamic="batch"), inputs)


def _openvino_file(path: Path, inputs: Arguments) -> Call:
    compiled = openvino_model(path)
    return lambda: run_openvino(compiled, inputs)


def _require_cpu(inputs: Arguments) -> None:
    devices = {tensor.device.type for tensor in tensors(inputs)}
    if devices != {"cpu"}:
        raise InputError(
            f"it runs on the CPU only and the inputs are on {', '.join(sorted(devices))}"
        )


@dataclass(frozen=True)
class Runtime:
    """One way to run networks.

    Args:
        of_model: makes the call for a model, with a folder to write files into.
        of_file: makes the call for an .onnx file, where the runtime takes one.
        package: the one whose version the figures depend on, beside torch.
        is_usual: whether people ship with it.
    """

    of_model: Callable[[nn.Module, Arguments, Path], Call]
    of_file: Callable[[Path, Arguments], Call] | None = None
    package: str | None = None
    is_usual: bool = True


RUNTIMES = {
    "eager": Runtime(_eager),
    "onnxruntime": Runtime(_onnxruntime, _onnxruntime_file, "onnxruntime"),
    "onnxruntime-unfused": Runtime(_unfused, package="onnxruntime", is_usual=False),
    "openvino": Runtime(_openvino, _openvino_file, "openvino"),
    "inductor": Runtime(_inductor),
}
USUAL = tuple(name for name, runtime in RUNTIMES.items() if runtime.is_usual)
FILE_RUNTIMES = {
    name: runtime.of_file for name, runtime in RUNTIMES.items() if runtime.of_file is not None
}
"""Those that run an .onnx file, each with what makes the call."""
