"""A file and its fold as graphs, and what ONNX Runtime gives where torch cannot run them."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from refold.errors import RefusedError
from refold.graph import Capture, Fold, Kept
from refold.onnx_files.constants import constants_of, sizes_of
from refold.onnx_files.folding import fold_onnx, folded
from refold.onnx_files.proof import Trial, examples, watched
from refold.onnx_files.reading import inlined, quantized_reason, read
from refold.onnx_files.translation.network import Opaque
from refold.onnx_files.translation.translating import translate
from refold.onnx_files.writing import origin_of


@dataclass(frozen=True, eq=False, kw_only=True)
class FoldedGraphs:
    """A file before and after its fold.

    Args:
        before: the graph of the file.
        after: the graph of its fold, with weights in float64, not rounded.
        inputs: what both take, floats in float64.
        known: what calls of both graphs give on them that torch cannot run.
        steps: what was folded.
        kept: what was left, and why.
        trials: the runs of both files.
    """

    before: Capture
    after: Capture
    inputs: tuple[Tensor, ...]
    known: Mapping[fx.Node, Any]
    steps: tuple[Fold, ...]
    kept: tuple[Kept, ...]
    trials: tuple[Trial, ...]


def graphs_of(path: str | os.PathLike[str], *, allow_growth: bool = False) -> FoldedGraphs:
    """Fold a file, run both forms, and return them as graphs.

    Raises:
        RefusedError: when it is quantized.
        InputError: when it is damaged, or cannot be run.
        NotEquivalentError: when the result is another function, which is a defect of refold.
    """
    file = inlined(read(path))
    reason = quantized_reason(file)
    if reason is not None:
        raise RefusedError(f"{path}: {reason}")
    with tempfile.TemporaryDirectory(prefix="refold-") as folder:
        report = fold_onnx(path, Path(folder) / "out.onnx", allow_growth=allow_growth)
    arrays = examples(file, None)[0]
    sizes = sizes_of(file)
    network, before = translate(file, sizes, constants_of(file, sizes))
    after = folded(inlined(read(path)), allow_growth=allow_growth, exactly=True).capture
    assert after is not None
    names = {n: name for capture in (before, after) for n, name in _unknown(capture)}
    asked = list(dict.fromkeys(names.values()))
    given = dict(zip(asked, watched(file, asked).run(asked, arrays), strict=True)) if asked else {}
    known: dict[fx.Node, Any] = {node: _wide(given[name]) for node, name in names.items()}
    for capture in (before, after):
        known |= {n: None for n in capture.graph.nodes if _is_opaque(n) and n not in known}
    inputs = tuple(_wide(arrays[name]) for name in network.values if name in arrays)
    return FoldedGraphs(
        before=before, after=after, inputs=inputs, known=known, steps=report.steps,
        kept=report.kept, trials=report.trials,
    )  # fmt: skip


def _is_opaque(call: fx.Node) -> bool:
    return isinstance(call.target, Opaque)


def _unknown(capture: Capture) -> list[tuple[fx.Node, str]]:
    """Return the values that calls of strangers make, by the names that the file has for them."""
    found: list[tuple[fx.Node, str]] = []
    for call in capture.graph.nodes:
        origin = origin_of(call)
        reads = call.all_input_nodes
        is_part = origin is not None and not origin.nodes and len(reads) == 1
        if origin is None or origin.output is None or call.op != "call_function":
            continue
        if _is_opaque(call) or (is_part and _is_opaque(reads[0])):
            found.append((call, origin.output))
    return found


def _wide(array: Any) -> Any:
    """Return an array of ONNX Runtime as a tensor, floats in float64; anything else as it is."""
    try:
        tensor = torch.as_tensor(array)
    except (TypeError, ValueError):  # a sequence, a text
        return array
    return tensor.double() if tensor.is_floating_point() else tensor


def in_double(capture: Capture) -> nn.Module:
    """Return the modules of a graph in float64."""
    return copy.deepcopy(capture.module).double()


def kind_of(call: fx.Node) -> str | None:
    """Return the operator of a node that refold does not interpret, None for any other."""
    origin = origin_of(call)
    is_known = not _is_opaque(call) or origin is None or not origin.nodes
    return None if is_known else str(origin.nodes[0].op_type)  # type: ignore[union-attr]
