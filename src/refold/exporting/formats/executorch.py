"""`.pte`: a program for ExecuTorch on phones and small boards, with XNNPACK's kernels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from refold.exporting.formats.pt2 import trace
from refold.exporting.libraries import converting, require
from refold.exporting.provenance import PTE_METHOD, keyed
from refold.exporting.request import Request
from refold.exporting.silence import mute
from refold.inputs import Arguments, tensors

_EXTRA = "executorch"


def write_executorch(request: Request, path: Path) -> None:
    """Lower the program, write it, then load and run it."""
    with mute():
        exir = require("executorch.exir", _EXTRA)
        kernels = require("executorch.backends.xnnpack.partition.xnnpack_partitioner", _EXTRA)
    program = trace(request)
    about = {PTE_METHOD: json.dumps(keyed(request.provenance))}
    with converting("ExecuTorch", request.model):
        lowered = exir.to_edge_transform_and_lower(
            program, partitioner=[kernels.XnnpackPartitioner()], constant_methods=about
        )
        path.write_bytes(lowered.to_executorch().buffer)
    call = open_executorch(path)
    request.check("ExecuTorch", lambda inputs: run_executorch(call, inputs))


@dataclass(frozen=True)
class Loaded:
    """The forward of a file, and what it stands on: freed with it, not before."""

    method: Any
    program: Any
    content: bytes


def open_executorch(path: Path) -> Loaded:
    """Load the forward of a file."""
    content = path.read_bytes()
    with mute():
        runtime = require("executorch.runtime", _EXTRA)
        program = runtime.Runtime.get().load_program(content)
        return Loaded(program.load_method("forward"), program, content)


def run_executorch(loaded: Loaded, inputs: Arguments) -> list[Tensor]:
    """Call a loaded forward on tensors in the order of the model's arguments."""
    with mute():
        found = loaded.method.execute([tensor.contiguous() for tensor in tensors(inputs)])
        return [value.clone() for value in found if isinstance(value, Tensor)]
