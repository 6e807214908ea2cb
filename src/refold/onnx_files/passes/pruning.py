"""An ONNX file without its least important channels."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from refold.errors import InputError, RefusedError
from refold.graph import Editor, Kept, Lifter, submodule
from refold.onnx_files.passes.account import OnnxAccount, cost_of
from refold.onnx_files.passes.residuals import without_residuals
from refold.onnx_files.passes.rewriting import (
    Translated,
    compared,
    folded_first,
    published,
    rewritten,
)
from refold.onnx_files.reading import read
from refold.onnx_files.report import count
from refold.pruning import (
    Amount,
    DeadChannelPass,
    Floor,
    Slimmed,
    check_step,
    choose,
    closest,
    filter_norms,
    layers_of,
    silence,
    slimmed,
)
from refold.workload import Workload


def prune_onnx(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    ratio: float | None = None,
    threshold: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    floor: Floor = 1,
    round_to: int = 8,
    remove_residuals: bool = False,
    example_inputs: Mapping[str, Any] | None = None,
) -> OnnxAccount:
    """Fold an ONNX file and drop its least important channels.

    What a channel is worth is the L1 norm of its folded filter over the mean of its layer. A
    channel that goes is silenced: weights and bias 0. The result is run in ONNX Runtime beside the
    silenced file; where they differ nothing is written. `ratio=0` drops what is dead already.

    Args:
        path: the file.
        output: where to write the result; without it only the account is made.
        ratio: the share of the channels that may go; either this or one of the next three.
        threshold: channels of at most this importance go.
        macs: what may be left of the folded file's multiply-adds: a share such as 0.5, or their
            number for one example.
        params: the same of the parameters of its layers.
        floor: how many (int) or which share (float) of the channels every layer keeps at least; a
            dict gives it by layer.
        round_to: every layer that loses channels keeps a multiple of so many.
        remove_residuals: write residuals as plain chains first.
        example_inputs: arrays by the names of the inputs, for a file that does not run on random
            ones.

    Raises:
        RefusedError: when the file is quantized, or no channel of it can go.
        InputError: when an argument is invalid, or the file is damaged or cannot be run.
        NotEquivalentError: when the result is another function, which is a defect of refold.
        MissingDependencyError: without the onnx extra.

    Examples:
        >>> import onnx, tempfile
        >>> text = '''<ir_version: 8, opset_import: ["" : 17]>
        ... net (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y)
        ... <float[2, 1, 1, 1] w = {2.0, 0.1}, float[1, 2, 1, 1] v = {3.0, 4.0}>
        ... { a = Conv(x, w)  b = Relu(a)  y = Conv(b, v) }'''
        >>> folder = tempfile.TemporaryDirectory()
        >>> onnx.save(onnx.parser.parse_model(text), f"{folder.name}/net.onnx")
        >>> prune_onnx(f"{folder.name}/net.onnx", ratio=0.5).steps[0].detail
        '2 -> 1 channels'
        >>> folder.cleanup()
    """
    amount = Amount(ratio, threshold, macs, params)
    source = Path(path)
    with folded_first(source, output, example_inputs) as (folder, folded):
        target = None if output is None else Path(output)
        stays: tuple[Kept, ...] = ()
        before, plain = None, folded
        if remove_residuals:
            plain = folder / "plain.onnx"
            removed = without_residuals(folded, plain, source, None)
            before, stays = removed.cost_before, removed.kept
            compared(read(folded), plain, example_inputs)
        case = _Case.of(plain, floor, check_step(round_to))
        silenced = case.chosen(amount, before or case.cost)
        masked, pruned = folder / "masked.onnx", folder / "pruned.onnx"
        rewritten(plain, masked, partial(_silence, silenced))
        done = rewritten(masked, pruned, partial(_narrowed, round_to))
        trials = compared(read(masked), pruned, example_inputs)
        published(pruned, target)
        names = case.made.names
        return OnnxAccount(
            path=source, output=target, steps=done.steps,
            kept=(*stays, *case.kept, *done.kept),
            nodes_before=count(read(folded).nodes), nodes_after=count(read(pruned).nodes),
            changed=bool(done.steps), trials=trials, done="narrowed",
            cost_before=before or case.cost, cost_after=done.cost,
            silenced={names[layer]: rows for layer, rows in silenced.items()},
        )  # fmt: skip


class _Narrowed(NamedTuple):
    """The layers that lost channels, those that keep dead ones, and the cost of what came out."""

    steps: tuple[Slimmed, ...]
    kept: tuple[Kept, ...]
    cost: Workload


class _Case(NamedTuple):
    """A folded file, and the layers of it that can lose channels."""

    path: Path
    made: Translated
    layers: list[Any]
    kept: list[Kept]
    cost: Workload
    floor: Floor
    round_to: int

    @classmethod
    def of(cls, path: Path, floor: Floor, round_to: int) -> _Case:
        """Read a file.

        Raises:
            RefusedError: when no channel of it can go.
        """
        made = Translated.of(path)
        layers, found = layers_of([made.capture])
        kept = [replace(item, where=made.names.get(item.where, item.where)) for item in found]
        if not layers:
            reasons = "; ".join(f"{item.where}: {item.reason}" for item in kept)
            if not reasons:
                raise RefusedError("the file has no layer whose channels can be dropped")
            raise RefusedError(f"no channel of this file can be dropped: {reasons}")
        if isinstance(floor, Mapping):
            paths = {name: layer for layer, name in made.names.items()}
            floor = {paths.get(name, name): least for name, least in floor.items()}
        cost = cost_of(made.network, made.capture)
        return cls(path, made, layers, kept, cost, floor, round_to)

    def chosen(self, amount: Amount, before: Workload) -> dict[str, list[int]]:
        """Return the channels that go, by the layers of the graph.

        Raises:
            InputError: when multiply-adds are asked for and the sizes are free.
            RefusedError: when no ratio leads to so little.
        """
        if amount.macs is not None and before.macs is None:
            raise InputError(
                "the file leaves its input size open, so its multiply-adds are no number: "
                "give params or ratio"
            )
        budget = amount.budget(before, None)
        if budget is None:
            return self._least(amount.ratio, amount.threshold)

        def attempt(silenced: dict[str, list[int]]) -> tuple[dict[str, list[int]], float]:
            made = Translated.of(self.path)
            _silence(silenced, made)
            return silenced, budget.of(made.capture.module, _narrowed(self.round_to, made).cost)

        return closest(budget, lambda ratio: self._least(ratio, None), attempt)

    def _least(self, ratio: float | None, threshold: float | None) -> dict[str, list[int]]:
        return choose(
            self.layers, [filter_norms(layer) for layer in self.layers], ratio=ratio,
            threshold=threshold, floor=self.floor, round_to=self.round_to,
        )  # fmt: skip


def _silence(silenced: dict[str, list[int]], made: Translated) -> None:
    """Set weights and biases of some channels to 0, in layers that own theirs."""
    root = made.capture.module
    for path in silenced:
        root.add_module(path, copy.deepcopy(submodule(root, path)))
    silence(root, silenced)


def _narrowed(round_to: int, made: Translated) -> _Narrowed:
    """Drop the dead channels of a graph."""
    before = nn.Module()
    before._modules.update(made.capture.module._modules)
    lifter, editor = Lifter.of(made.capture), Editor(made.capture)
    done = DeadChannelPass(lifter, editor, round_to)
    done.run()
    editor.settle()
    made.capture.shapes = lifter.shapes
    steps = (
        replace(step, where=made.names.get(step.where, step.where))
        for step in slimmed(before, made.capture.module)
    )
    return _Narrowed(tuple(steps), tuple(done.kept), cost_of(made.network, made.capture))
