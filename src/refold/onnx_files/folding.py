"""Fold an ONNX file of any origin, and prove that the result is the same function."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import fx

from refold.errors import InputError, RefoldError
from refold.exporting import require
from refold.files import atomic_path
from refold.graph import Capture, Fold, Kept, fold_graph, place_of
from refold.onnx_files.bodies import Bodies, fold_bodies
from refold.onnx_files.constants import constants_of, sizes_of
from refold.onnx_files.proof import examples, prove
from refold.onnx_files.reading import (
    OnnxFile,
    calls_of_layers,
    damage,
    inlined,
    quantized_reason,
    read,
    title,
)
from refold.onnx_files.report import OnnxReport, count
from refold.onnx_files.saving import (
    apply,
    companion,
    copy_of,
    has_weights_outside,
    require_other,
    save,
    tensors,
)
from refold.onnx_files.scales import hand_over_scales
from refold.onnx_files.tensors import check_size
from refold.onnx_files.translation.idioms import REASON, idioms
from refold.onnx_files.translation.layouts import join_reshapes, join_slices
from refold.onnx_files.translation.network import Network
from refold.onnx_files.translation.translating import translate
from refold.onnx_files.trials import open_original
from refold.onnx_files.writing import Writer, Written

_LARGEST = 2**31 - 1  # bytes that protobuf writes in one piece
_ADVICE = ("pass example_inputs", "run shape inference on the file, or give its inputs shapes")
"""What would help a network, and what helps a file."""
_UNREAD = (
    "it calls a function of the file whose layers are not read: it imports another opset than the "
    "file"
)


def fold_onnx(
    path: str | os.PathLike[str] | Any,
    output: str | os.PathLike[str] | None = None,
    *,
    allow_growth: bool = False,
    check: bool = True,
    example_inputs: Mapping[str, Any] | None = None,
) -> OnnxReport:
    """Fold an ONNX file, whatever wrote it, or a model in memory.

    Nodes that the algebra does not know stay as they are, and so does the whole file where nothing
    folds. What was written is run in ONNX Runtime beside the original, on two sizes of every free
    axis; where they differ by more than rounding nothing is written.

    Args:
        path: the file, or an `onnx.ModelProto`, which stays as it is.
        output: where to write the result; without it only the account is made.
        allow_growth: also make merges that need more multiply-adds than their parts.
        check: run both files.
        example_inputs: arrays by the names of the inputs, for a file that does not run on random
            ones.

    Raises:
        InputError: when the file is damaged, or cannot be run.
        NotEquivalentError: when the result is another function, which is a defect of refold.
        MissingDependencyError: without the onnx extra.

    Examples:
        >>> import onnx, tempfile
        >>> text = '''<ir_version: 8, opset_import: ["" : 17]>
        ... net (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y)
        ... <float[1, 1, 1, 1] w = {2.0}, float[1] b = {3.0}, float[1, 1, 1, 1] s = {5.0}>
        ... { z = Conv(x, w, b)  y = Mul(z, s) }'''
        >>> folder = tempfile.TemporaryDirectory()
        >>> onnx.save(onnx.parser.parse_model(text), f"{folder.name}/net.onnx")
        >>> fold_onnx(f"{folder.name}/net.onnx").nodes_after
        {'Conv': 1}
        >>> folder.cleanup()
    """
    if not isinstance(path, str | os.PathLike):
        with _stored(path) as file:
            report = fold_onnx(
                file, output, allow_growth=allow_growth, check=check, example_inputs=example_inputs
            )
        return replace(report, path=Path(file.name))
    file = read(path)
    if output is not None:
        require_other(file, output)
    try:
        target = None if output is None else Path(output)
        return _fold(file, target, allow_growth, check, example_inputs)
    except RefoldError:
        raise
    except Exception as error:
        reason = damage(read(path).model)
        if reason is None:
            raise
        raise InputError(f"{path} is damaged: {reason}") from error


@contextmanager
def _stored(model: Any) -> Generator[Path]:
    """Write a model in memory to a file for as long as it is read.

    Raises:
        InputError: when it is none, or too large for one file.
    """
    onnx = require("onnx", "onnx")
    if not isinstance(model, onnx.ModelProto):
        raise InputError(
            f"give the path of an .onnx file, or an onnx.ModelProto, got {type(model).__name__}"
        )
    if model.ByteSize() > _LARGEST:
        raise InputError("the model is over 2 GB: write it with onnx.save, and give its path")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{Path(model.graph.name or 'model').name}.onnx"
        file.write_bytes(model.SerializeToString())
        yield file


def _fold(
    file: OnnxFile,
    target: Path | None,
    allow_growth: bool,
    check: bool,
    example_inputs: Mapping[str, Any] | None,
) -> OnnxReport:
    for tensor in tensors(file.model.graph):
        check_size(tensor, file.folder)
    file = inlined(file)
    before = count(file.nodes)
    bodies = Bodies()
    if quantized_reason(file) is None:
        bodies = fold_bodies(file, partial(fold_onnx, allow_growth=allow_growth, check=check))
    written, steps, kept = folded(file, allow_growth=allow_growth)[:3]  # the rest is large
    written.changed = written.changed or bool(bodies.steps)
    calls = [Kept(title(node), _UNREAD) for node in calls_of_layers(file)]
    steps, kept = (*bodies.steps, *steps), (*bodies.kept, *calls, *kept)
    report = OnnxReport(
        path=file.path, output=target, steps=steps, kept=kept,
        nodes_before=before, nodes_after=count(written.nodes), changed=written.changed,
    )  # fmt: skip
    if target is None:
        return report
    if check:
        open_original(file)
    with atomic_path(target, [companion(target)]) as temporary:
        if not written.changed:
            copy_of(read(file.path), temporary)
            return report
        original = read(file.path) if check else file
        inputs = examples(original, example_inputs) if check else []
        outside = has_weights_outside(file)
        apply(file, written)
        save(file, temporary, outside=outside)
        trials = prove(original, temporary, inputs, written.made) if check else ()
    return replace(report, trials=trials)


class Folded(NamedTuple):
    """A folded file that is not written yet.

    Args:
        written: its nodes.
        steps: what was folded.
        kept: what was left, and why.
        capture: its graph; None for a file that is left alone.
    """

    written: Written
    steps: tuple[Fold, ...]
    kept: tuple[Kept, ...]
    capture: Capture | None


def folded(file: OnnxFile, *, allow_growth: bool, exactly: bool = False) -> Folded:
    """Fold what was read, in memory; `exactly` keeps the weights in float64, to look at only."""
    reason = quantized_reason(file)
    if reason is not None:
        return Folded(Written(list(file.nodes)), (), (Kept(file.path.name, reason),), None)
    sizes = sizes_of(file)
    constants = constants_of(file, sizes)
    made = list[tuple[Network, Capture]]()

    whole = list[list[fx.Node]]()
    cuts = list[Fold]()

    def make() -> Capture:
        whole.clear()
        made[:] = [translate(file, sizes, constants)]
        network, capture = made[0]
        cuts[:] = join_slices(network, capture)
        for nodes in idioms(network):
            whole.append([network.values[node.output[0]] for node in nodes])
            capture.stays.update(dict.fromkeys(whole[-1], REASON))
        if exactly:
            capture.module.double()
        return capture

    names: dict[str, str] = {}
    scales = list[Fold]()

    def write(capture: Capture) -> Written:
        scales[:] = [*hand_over_scales(capture), *join_reshapes(made[0][0], capture)]
        writer = Writer(made[0][0], capture)
        written = writer.write()
        names.clear()
        names.update(writer.called)
        return written

    done = fold_graph(make, write, allow_growth=allow_growth)
    steps = tuple(
        replace(step, where=_called(step.where, names)) for step in (*cuts, *done.folds, *scales)
    )
    steps += tuple(
        Fold(where, "nodes into one", " + ".join((where, *others)), 0, 0)
        for where, *others in done.result.joined
    )
    if done.result.computed:
        steps += (_computed(done.result.computed),)
    kept = tuple(
        replace(item, where=_called(item.where, names), reason=item.reason.replace(*_ADVICE))
        for item in done.kept
    )
    network, capture = made[0]
    parts = {place_of(call) for calls in whole for call in calls[:-1]}
    kept = tuple(k for k in kept if k.reason != REASON or k.where not in parts)
    kept += tuple(
        Kept(place_of(call), network.unread[call])
        for call in capture.graph.nodes if call in network.unread
    )  # fmt: skip
    for call in capture.graph.nodes:  # what a fold made is called what the file calls it
        call.meta.setdefault("place", names.get(str(call.target), call.name))
    return Folded(done.result, steps, kept, capture)


def _computed(count: int) -> Fold:
    """Return the entry of the account for nodes that no input decides."""
    nodes = "1 node that no input decides" if count == 1 else f"{count} nodes that no input decides"
    return Fold("constants", "compute constants", nodes, 0, 0)


def _called(where: str, names: Mapping[str, str]) -> str:
    """Return a place in the words of the file."""
    return " + ".join(names.get(part, part) for part in where.split(" + "))
