"""`.tflite`: a model for LiteRT (TensorFlow Lite) on phones and small boards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refold.exporting.formats.appendix import append
from refold.exporting.libraries import converting, require
from refold.exporting.provenance import keyed
from refold.exporting.request import Request
from refold.exporting.silence import mute
from refold.inputs import Arguments, parted, tensors

_EXTRA = "litert"


def write_litert(request: Request, path: Path) -> None:
    """Convert the network, write it, then run it."""
    with mute():
        converter = require("litert_torch", _EXTRA)
    args, kwargs = parted(request.axes.example)
    with converting("LiteRT", request.model), mute():
        converter.convert(request.model, args, kwargs or None).export(str(path))
    append(path, keyed(request.provenance))
    call = open_litert(path)
    request.check("LiteRT", lambda inputs: run_litert(call, inputs))


def open_litert(path: Path) -> Any:
    """Open a file with as many threads as torch uses."""
    with mute():
        runtime = require("ai_edge_litert.interpreter", _EXTRA)
        found = runtime.Interpreter(model_path=str(path), num_threads=torch.get_num_threads())
        found.allocate_tensors()
    return found


def run_litert(opened: Any, inputs: Arguments) -> list[Tensor]:
    """Call an open file on tensors in the order of the model's arguments.

    Raises:
        InputError: when it takes others.
    """
    [(name, signature)] = opened.get_signature_list().items()
    call = opened.get_signature_runner(name)
    values = [tensor.numpy() for tensor in tensors(inputs)]
    with mute():
        found = call(**dict(zip(_in_order(signature["inputs"]), values, strict=True)))
    return [torch.from_numpy(found[key].copy()) for key in _in_order(signature["outputs"])]


def _in_order(names: list[str]) -> list[str]:
    """Return names such as `output_10` by their numbers.

    Examples:
        >>> _in_order(["output_10", "output_2"]), _in_order(["mask", "image"])
        (['output_2', 'output_10'], ['mask', 'image'])
    """
    numbers = [name.rpartition("_")[2] for name in names]
    if not all(number.isdecimal() for number in numbers):
        return names
    return [name for _, name in sorted(zip(map(int, numbers), names, strict=True))]
