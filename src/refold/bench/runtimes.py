"""Ways to run a model: each opens it, as a call without arguments that runs it on the inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
Opener = Callable[[], Call]


def _eager(model: nn.Module, inputs: Arguments, folder: Path) -> Opener:
    copied, given = prepared(model, inputs)
    return lambda: partial(call, copied, given)


def _inductor(model: nn.Module, inputs: Arguments, folder: Path) -> Opener:
    copied, given = prepared(model, inputs)
    on_gpu = any(tensor.is_cuda for tensor in tensors(given))
    # On a GPU, small layers wait for their launches: CUDA graphs are what one deploys.
    compiled = torch.compile(copied, dynamic=False, mode="reduce-overhead" if on_gpu else None)
    return lambda: partial(call, compiled, given)


def _onnxruntime(model: nn.Module, inputs: Arguments, folder: Path) -> Opener:
    _require_cpu(inputs)
    path = export(model, folder / "model.onnx", inputs, dynamic="batch")
    return partial(_onnxruntime_file, path, inputs)


def _unfused(model: nn.Module, inputs: Arguments, folder: Path) -> Opener:
    """Run every layer as it stands: the exporter and ONNX Runtime both fold norms by themselves."""
    _require_cpu(inputs)
    path = write_unfused(model, inputs, folder / "unfused.onnx")
    return partial(_onnxruntime_file, path, inputs, fuse=False)


def _onnxruntime_file(path: Path, inputs: Arguments, *, fuse: bool = True) -> Call:
    return partial(run_onnx, onnx_session(path, fuse=fuse), inputs)


def _openvino(model: nn.Module, inputs: Arguments, folder: Path) -> Opener:
    _require_cpu(inputs)
    path = export(model, folder / "model.xml", inputs, dynamic="batch")
    return partial(_openvino_file, path, inputs)


def _openvino_file(path: Path, inputs: Arguments) -> Call:
    return partial(run_openvino, openvino_model(path), inputs)


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
        of_model: makes what opens a model, with a folder to write files into, which are opened.
        of_file: opens an .onnx file, where the runtime takes one.
        package: the one whose version the figures depend on, beside torch.
        openings: how often a model is opened anew while it is timed. A runtime with files of its
            own decides where weights and maps lie each time that it opens one, and the time of a
            call depends on it: in OpenVINO by a tenth and more.
        is_usual: whether `benchmark` times it where nobody names a runtime: people ship with it,
            and it needs no GPU.
        keeps_layout: whether it computes in the layout that the weights have, so that a network in
            channels last is another form of it.
    """

    of_model: Callable[[nn.Module, Arguments, Path], Opener]
    of_file: Callable[[Path, Arguments], Call] | None = None
    package: str | None = None
    openings: int = 1
    is_usual: bool = True
    keeps_layout: bool = False


_OPENINGS = 6
RUNTIMES = {
    "eager": Runtime(_eager, keeps_layout=True),
    "onnxruntime": Runtime(_onnxruntime, _onnxruntime_file, "onnxruntime", _OPENINGS),
    "onnxruntime-unfused": Runtime(_unfused, None, "onnxruntime", _OPENINGS, is_usual=False),
    "openvino": Runtime(_openvino, _openvino_file, "openvino", _OPENINGS),
    "inductor": Runtime(_inductor),
}
USUAL = tuple(name for name, runtime in RUNTIMES.items() if runtime.is_usual)
FILE_RUNTIMES = {
    name: runtime.of_file for name, runtime in RUNTIMES.items() if runtime.of_file is not None
}
"""Those that run an .onnx file, each with what opens it."""
