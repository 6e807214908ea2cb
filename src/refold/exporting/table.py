"""Every format of a file: what writes it, what it can hold, and what runs it again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refold.exporting.accepted import (
    Sizes,
    executorch_sizes,
    litert_sizes,
    onnx_sizes,
    openvino_sizes,
)
from refold.exporting.formats.aot import aot_sizes, is_compiled, open_aot, run_aot
from refold.exporting.formats.executorch import open_executorch, run_executorch, write_executorch
from refold.exporting.formats.litert import open_litert, run_litert, write_litert
from refold.exporting.formats.onnx import onnx_session, run_onnx, write_onnx
from refold.exporting.formats.openvino import openvino_model, run_openvino, write_openvino
from refold.exporting.formats.pt2 import write_pt2
from refold.exporting.formats.safetensors import write_safetensors
from refold.exporting.request import Request
from refold.inputs import Arguments


@dataclass(frozen=True)
class Runtime:
    """What runs the files of a format.

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


@dataclass(frozen=True)
class Format:
    """One kind of file.

    Args:
        write: writes a file and checks it.
        runtime: what runs it, where that is not torch.
        package: what writing needs, and the extra that brings it, asked for before any work is
            done.
        beside: the endings of files that belong to one.
        is_weights: whether it holds weights alone.
        takes_names: whether inputs and outputs can be given names; else it keeps the forward's own.
        is_fixed: whether it takes one size alone, as for phones, whose memory is planned before
            they run.
        lacks: types that it cannot hold or that its runtime does not compute in: why, and what to
            do.
    """

    write: Callable[[Request, Path], None]
    runtime: Runtime | None = None
    package: tuple[str, str] | None = None
    beside: tuple[str, ...] = ()
    is_weights: bool = False
    takes_names: bool = False
    is_fixed: bool = False
    lacks: Mapping[torch.dtype, str] = field(default_factory=dict[torch.dtype, str])

    @property
    def is_flat(self) -> bool:
        """Whether it returns tensors in a row, and nothing else."""
        return self.takes_names or self.is_fixed


def _single(name: str) -> dict[torch.dtype, str]:
    return {torch.float64: f"{name} computes in float32; export model.float()"}


def _no_bfloat16(name: str) -> dict[torch.dtype, str]:
    return {
        torch.bfloat16: f"{name} is checked on the CPU, where it takes none; export model.float() "
        "in float32, or with half=True in float16"
    }


FORMATS = {
    ".onnx": Format(
        write_onnx,
        Runtime("ONNX Runtime", onnx_session, run_onnx, onnx_sizes),
        beside=(".onnx.data",),
        takes_names=True,
        lacks=_no_bfloat16("ONNX Runtime"),
    ),
    ".pt2": Format(write_pt2),
    ".pte": Format(
        write_executorch,
        Runtime("ExecuTorch", open_executorch, run_executorch, executorch_sizes),
        package=("executorch", "executorch"),
        is_fixed=True,
        lacks=_single("XNNPACK"),
    ),
    ".safetensors": Format(write_safetensors, is_weights=True),
    ".tflite": Format(
        write_litert,
        Runtime("LiteRT", open_litert, run_litert, litert_sizes),
        package=("litert_torch", "litert"),
        is_fixed=True,
        lacks=_single("LiteRT"),
    ),
    ".xml": Format(
        write_openvino,
        Runtime("OpenVINO", openvino_model, run_openvino, openvino_sizes),
        beside=(".bin",),
        takes_names=True,
        lacks=_single("OpenVINO") | _no_bfloat16("OpenVINO"),
    ),
}
"""The formats by suffix."""
_COMPILED = Runtime("AOTInductor", open_aot, run_aot, aot_sizes)
ELSEWHERE = {
    ".engine": "TensorRT builds engines from ONNX: export to .onnx, then run trtexec",
    ".mlpackage": "Core ML Tools convert programs: export to .pt2, then coremltools.convert",
    ".pth": "write .safetensors for the weights alone, .pt2 for the network",
    ".pt": "write .safetensors for the weights alone, .pt2 for the network",
}
"""Formats that other tools write, and the way there."""


def runtime_of(path: Path) -> Runtime | None:
    """Return what runs a file, None where torch does, or nothing.

    Examples:
        >>> runtime_of(Path("net.ONNX")).name, runtime_of(Path("net.pt2"))
        ('ONNX Runtime', None)
    """
    suffix = path.suffix.lower()
    if suffix == ".pt2" and is_compiled(path):
        return _COMPILED
    return FORMATS[suffix].runtime if suffix in FORMATS else None


def open_file(path: Path) -> tuple[Callable[[Arguments], list[Tensor]], Sizes]:
    """Open a file in the runtime of its format; return what runs it, and which sizes it takes."""
    runtime = runtime_of(path)
    assert runtime is not None, f"nothing but torch opens {path.suffix}"
    opened = runtime.start(path)
    return partial(runtime.run, opened), runtime.sizes(opened)


def companions(target: Path) -> list[str]:
    """Return the names of the files that may be written beside a file, and belong to it.

    >>> companions(Path("out/net.xml")), companions(Path("net.pt2"))
    (['net.bin'], [])
    """
    found = FORMATS.get(target.suffix.lower())
    return [target.with_suffix(ending).name for ending in (found.beside if found else ())]
