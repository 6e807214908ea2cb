"""An ONNX file without residual additions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from refold.account import require_none
from refold.graph import Editor, Fold, Kept, Lifter, UnwritableError, wrong_step
from refold.onnx_files.passes.account import OnnxAccount, cost_of
from refold.onnx_files.passes.rewriting import (
    Translated,
    compared,
    folded_first,
    published,
    rewritten,
)
from refold.onnx_files.reading import read
from refold.onnx_files.report import count
from refold.residuals import ResidualPass
from refold.workload import Workload


def remove_residuals_onnx(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    strict: bool = False,
    example_inputs: Mapping[str, Any] | None = None,
) -> OnnxAccount:
    """Fold an ONNX file and write its residual additions as plain chains.

    The result is run in ONNX Runtime beside the original; where they differ nothing is written.

    Args:
        path: the file.
        output: where to write the result; without it only the account is made.
        strict: raise when a sum of two values has to stay.
        example_inputs: arrays by the names of the inputs, for a file that does not run on random
            ones.

    Raises:
        RefusedError: when the file is quantized; with `strict`, when a sum has to stay.
        InputError: when the file is damaged, or cannot be run.
        NotEquivalentError: when the result is another function, which is a defect of refold.
        MissingDependencyError: without the onnx extra.

    Examples:
        >>> import onnx, tempfile
        >>> text = '''<ir_version: 8, opset_import: ["" : 17]>
        ... net (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y)
        ... <float[1, 1, 1, 1] w = {2.0}, float[1, 1, 1, 1] v = {3.0}>
        ... { a = Conv(x, w)  b = Relu(a)  c = Conv(b, v)  y = Add(c, x) }'''
        >>> folder = tempfile.TemporaryDirectory()
        >>> onnx.save(onnx.parser.parse_model(text), f"{folder.name}/net.onnx")
        >>> remove_residuals_onnx(f"{folder.name}/net.onnx").nodes_after
        {'Conv': 2, 'PRelu': 1}
        >>> folder.cleanup()
    """
    source = Path(path)
    with folded_first(source, output, example_inputs) as (folder, folded):
        target = None if output is None else Path(output)
        plain = folder / "plain.onnx"
        account = without_residuals(folded, plain, source, target)
        if strict:
            require_none(account.kept)
        trials = compared(read(source), plain, example_inputs)
        published(plain, target)
    return replace(account, trials=trials)


class Removed(NamedTuple):
    """The residuals that went, those that stay, and the cost of what came out."""

    steps: tuple[Fold, ...]
    kept: tuple[Kept, ...]
    cost: Workload


def without_residuals(folded: Path, plain: Path, source: Path, target: Path | None) -> OnnxAccount:
    """Write a folded file without the residuals that can be removed; nothing is run.

    Args:
        folded: the file.
        plain: where to write the result.
        source: the file that the account speaks of.
        target: what it says of the result.
    """
    left: dict[str, str] = {}
    made = Translated.of(folded)
    before, kinds = cost_of(made.network, made.capture), count(made.network.file.nodes)
    while True:
        starts = list[str]()
        edit = partial(_removed, left, starts)
        try:
            done = rewritten(folded, plain, edit)
            break
        except UnwritableError as error:
            names = list(dict.fromkeys(starts))
            for step in wrong_step(names, partial(_can_be_written, folded, plain, left)):
                left[step] = str(error)
    nodes = count(read(plain).nodes)
    return OnnxAccount(
        path=source, output=target, steps=done.steps, kept=done.kept, nodes_before=kinds,
        nodes_after=nodes, changed=bool(done.steps), cost_before=before, cost_after=done.cost,
        done="removed",
    )  # fmt: skip


def _removed(left: Mapping[str, str], starts: list[str], made: Translated) -> Removed:
    """Remove the residuals of a graph; `starts` says from which nodes."""
    lifter, editor = Lifter.of(made.capture), Editor(made.capture)
    done = ResidualPass(lifter, editor)
    done.left = dict(left)
    done.run()
    starts += done.starts
    editor.settle()
    made.capture.shapes = lifter.shapes
    return Removed(tuple(done.folds), tuple(done.kept), cost_of(made.network, made.capture))


def _can_be_written(folded: Path, plain: Path, left: Mapping[str, str], fewer: list[str]) -> bool:
    try:
        rewritten(folded, plain, partial(_removed, {**left, **dict.fromkeys(fewer, "")}, []))
    except UnwritableError:
        return False
    return True
