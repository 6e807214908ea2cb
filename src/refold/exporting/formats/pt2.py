"""`.pt2`: the format of torch.export, loadable without the model's source."""

from __future__ import annotations

import inspect
import io
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from refold.equivalence import run, tensor_leaves
from refold.errors import ExportError, one_line
from refold.exporting.provenance import PT2_ENTRY, keyed
from refold.exporting.request import Request
from refold.inputs import parted
from refold.torch_versions import drop_unreadable_guards

# What says where a step comes from: lines of source with absolute paths.
_PRIVATE = ("stack_trace", "from_node", "source_fn_stack")
_ADVERTS = re.compile(r"!? *For more information, run with TORCH_LOGS=\S+")


def trace(request: Request) -> ExportedProgram:
    """Return the exported program with its free axes, without lines of the model's source.

    Raises:
        ExportError: When the model's forward cannot be traced so.
    """
    model, axes = request.model, request.axes
    try:
        shapes = _in_signature(model, axes.dynamic_shapes)
        args, kwargs = parted(axes.example)
        program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch.export has dozens of them, without a common base
        free = f" with {', '.join(axes.sizes)} free" if axes.sizes else ""
        cure = "may neither fix that size nor" if axes.sizes else "may not"
        raise ExportError(
            f"torch.export cannot trace {type(model).__name__}{free}: "
            f"{_ADVERTS.sub('', one_line(error))}; its forward {cure} branch on values"
        ) from error
    for module in program.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                for key in _PRIVATE:
                    node.meta.pop(key, None)
    drop_unreadable_guards(program)
    return program


def _in_signature(model: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what is said of each argument; what `*args` or `**kwargs` takes is one to torch."""
    shapes, named = parted(given)
    rows = inspect.signature(model.forward).parameters
    kinds = [row.kind for row in rows.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        first = kinds.index(inspect.Parameter.VAR_POSITIONAL)
        shapes = (*shapes[:first], shapes[first:]) if len(shapes) > first else shapes
    open_ones = {name: shape for name, shape in named.items() if name not in rows}
    known = (shape for name, shape in named.items() if name in rows)
    return (*shapes, *known, *([open_ones] if open_ones else ()))


def write_pt2(request: Request, path: Path) -> None:
    """Write the program, then load and run it."""
    # Through memory: on a full disk torch's own writer would end the process in its destructor.
    content = io.BytesIO()
    extra = {PT2_ENTRY: json.dumps(keyed(request.provenance))}
    torch.export.save(trace(request), content, extra_files=extra)
    path.write_bytes(content.getbuffer())
    loaded = torch.export.load(path).module()
    request.check("torch.export", lambda inputs: tensor_leaves(run(loaded, inputs)))
