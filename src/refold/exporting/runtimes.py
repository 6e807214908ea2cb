"""What runs each kind of file again, and says which sizes it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from refold.exporting.accepted import (
    Sizes,
    executorch_sizes,
    litert_sizes,
    onnx_sizes,
    openvino_sizes,
)
from refold.exporting.formats.executorch import open_executorch, run_executorch
from refold.exporting.formats.litert import open_litert, run_litert
from refold.exporting.formats.onnx import onnx_session, run_onnx
from refold.exporting.formats.openvino import openvino_model, run_openvino
from refold.inputs import Arguments


@dataclass(frozen=True)
class Runtime:
    """What runs files of one suffix.

    Args:
        name: what people call it.
        start: opens a file.
        run: calls an open file on tensors in the order of the model's arguments.
        sizes: says what an open file takes.
    """

    name: str
    start: Callable[[Path], Any]
    run: Callable[[Any, Arguments], list[Tensor]]
    sizes: Callable[[Any], Sizes]


RUNTIMES = {
    ".onnx": Runtime("ONNX Runtime", onnx_session, run_onnx, onnx_sizes),
    ".xml": Runtime("OpenVINO", openvino_model, run_openvino, openvino_sizes),
    ".pte": Runtime("ExecuTorch", open_executorch, run_executorch, executorch_sizes),
    ".tflite": Runtime("LiteRT", open_litert, run_litert, litert_sizes),
}


def open_file(path: Path) -> tuple[Callable[[Arguments], list[Tensor]], Sizes]:
    """Open a file in the runtime of its suffix; return what runs it, and which sizes it takes."""
    runtime = RUNTIMES[path.suffix.lower()]
    opened = runtime.start(path)
    return partial(runtime.run, opened), runtime.sizes(opened)
