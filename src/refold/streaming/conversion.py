"""Fold a network whose weights do not fit into the memory, from file to file."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from refold.account import Account
from refold.checkpoint import LoadReport, files_of, map_checkpoint
from refold.engine.outside import kept_outside
from refold.equivalence import (
    TOLERANCE,
    IncomparableError,
    cast_inputs,
    compare,
    native_bound,
    native_dtype,
    relative_errors,
    run,
    tensor_leaves,
)
from refold.errors import InputError, RefoldError, RefusedError, one_line, require_kind
from refold.exporting import keyed
from refold.files import require_apart, require_named, require_place
from refold.graph import FoldedModel, fold_model, unwrap
from refold.inputs import Arguments, arguments, unrunnable
from refold.streaming.shards import SHARD_BYTES, target_of, write_shards
from refold.streaming.weightless import without_weights
from refold.workload import Workload, workload_of


@dataclass(frozen=True, eq=False, kw_only=True)
class Streamed(Account):
    """What was folded from file to file.

    Args:
        files: what was written, the index last where there is one.
        loaded: how the weights were read.
        error: by how much the two forms differ on the example, in the model's own precision,
            relative to the largest output; None where there was no example.
    """

    files: tuple[Path, ...]
    loaded: LoadReport
    error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the account as plain data, ready for JSON."""
        files = [str(file) for file in self.files]
        more = {"files": files, "loaded": self.loaded.to_dict(), "error": self.error}
        return {**super().to_dict(), **more}


def fold_checkpoint(
    make: Callable[[], nn.Module],
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    example_inputs: Any = None,
    *,
    allow_growth: bool = False,
    key: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    check: bool = True,
) -> Streamed:
    """Fold a network from a file of weights into another, in less memory than the weights take.

    The same numbers as loading all of it, folding it and saving it. Weights stay in the
    checkpoint until a fold reads them, and new ones lie in files that the system writes out as it
    needs room: in memory are the largest fold, in float64 at most, and what the network keeps
    beside its parameters. The disk must have room for twice the result.

    Args:
        make: returns the network; its large parameters are on the meta device while it runs.
        checkpoint: a safetensors file, or the index or the folder of several. It must stay as it
            is meanwhile.
        output: a `.safetensors` file, or a folder for several and their index.
        example_inputs: as `reparameterize` takes them.
        allow_growth: also make merges that need more multiply-adds than their parts.
        key: what the names in the checkpoint begin with.
        shard_bytes: of weights in one of several files.
        check: compare both forms on the example in the model's own precision, and where that
            tells too little, the same fold in float64, for which the disk must have room for four
            times the weights more.

    Raises:
        InputError: when `make` cannot build the network without its weights, the network cannot
            run on the example, or the output cannot be written.
        CheckpointError: when the weights cannot be read, or do not fit.
        RefusedError: when the two forms differ on the example; nothing is written.

    Exact when:
        always: as `reparameterize`.

    Examples:
        >>> import safetensors.torch
        >>> def make():
        ...     return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
        >>> with tempfile.TemporaryDirectory() as name:
        ...     safetensors.torch.save_file(make().state_dict(), f"{name}/net.safetensors")
        ...     done = fold_checkpoint(make, f"{name}/net.safetensors", f"{name}/out")
        >>> done.summary()
        '1 folded; parameters 240 -> 224'
        >>> [file.name for file in done.files]
        ['model-00001-of-00001.safetensors', 'model.safetensors.index.json']
    """
    require_named("output", output)
    target = target_of(Path(output))
    _require(make, checkpoint, target, shard_bytes)
    job = _Job(make, checkpoint, key, example_inputs, allow_growth, check)
    with _scratch(target) as scratch:
        made = job.run(Path(scratch))
        if made.is_doubtful:
            job.prove(Path(scratch))
        state = made.done.model.state_dict()
        files = write_shards(state, target, shard_bytes=shard_bytes, metadata=_origin(made.done))
    done = made.done
    return Streamed(
        model=done.model, steps=done.folds, kept=done.kept,
        cost_before=made.cost, cost_after=workload_of(done.model),
        files=files, loaded=made.loaded, error=made.error,
    )  # fmt: skip


class _Made(NamedTuple):
    """A fold, how its weights were read, what the network cost, and how the two forms compare."""

    done: FoldedModel
    loaded: LoadReport
    cost: Workload
    error: float | None = None
    is_doubtful: bool = False


@dataclass(frozen=True)
class _Job:
    """What is folded, and how."""

    make: Callable[[], nn.Module]
    checkpoint: Any
    key: str | None
    example_inputs: Any
    allow_growth: bool
    check: bool

    def run(self, folder: Path, *, wide: bool = False) -> _Made:
        """Fold, with large weights in files of a folder; `wide` casts them to float64 first."""
        with kept_outside(folder):
            model = _built(self.make)
            if wide:
                model.double()
            loaded = map_checkpoint(model, self.checkpoint, key=self.key)
            inputs = arguments(model, self.example_inputs)
            if inputs is not None and wide:
                inputs = cast_inputs(inputs, torch.float64)
            cost = workload_of(model)
            if inputs is None or not self.check:
                return _Made(self._fold(model, inputs), loaded, cost)
            kind, bound = native_dtype(model), TOLERANCE if wide else native_bound(model)
            answer = _run(model, inputs)
            done = self._fold(model, inputs)
            error = _difference(answer, _run(done.model, inputs))
            # Half precision tells little; and rounding the weights of a deep network may move its
            # answer further than rounding on the way does.
            is_doubtful = not error <= bound or (kind is not None and kind.itemsize < 4)
            return _Made(done, loaded, cost, error, is_doubtful)

    def prove(self, folder: Path) -> None:
        """Compare the same fold in float64.

        Raises:
            RefusedError: when the two forms differ.
        """
        made = self.run(folder, wide=True)
        error, is_doubtful = made.error, made.is_doubtful
        del made
        gc.collect()  # graphs refer to themselves and hold the weights
        if is_doubtful:
            raise RefusedError(
                f"the folded network differs on the example by {error:.2g} of its largest output "
                "in float64: fold it in memory with refold.reparameterize, which leaves out the "
                "step at fault"
            )

    def _fold(self, model: nn.Module, inputs: Arguments | None) -> FoldedModel:
        return fold_model(model, inputs, allow_growth=self.allow_growth, inplace=True)


def _origin(done: FoldedModel) -> dict[str, str]:
    """Return what each file says of how it was made."""
    origin = {"source": type(done.model).__name__, "torch": torch.__version__}
    return keyed(origin | {"folds": str(len(done.folds)), "kept": str(len(done.kept))})


def _require(make: object, checkpoint: Any, target: Path, shard_bytes: object) -> None:
    """Refuse what could not be done, before anything is."""
    if not callable(make) or isinstance(make, nn.Module):
        raise InputError(
            f"make must be a function that returns the network, got a {type(make).__name__}"
        )
    if not isinstance(shard_bytes, int) or shard_bytes < 1:
        raise InputError(f"shard_bytes must be a positive number of bytes, got {shard_bytes!r}")
    sources = files_of(checkpoint)
    require_place(target)
    stem = target.name.partition(".")[0]
    beside = [file.name for file in sources if file.name.startswith(f"{stem}-")]
    require_apart(target, sources, beside)


def _scratch(target: Path) -> tempfile.TemporaryDirectory[str]:
    """Return a folder on the disk of the output, which is removed in the end."""
    folder = target.parent if target.parent.is_dir() else target.parent.parent
    return tempfile.TemporaryDirectory(prefix=".refold-", dir=folder, ignore_cleanup_errors=True)


def _built(make: Callable[[], nn.Module]) -> nn.Module:
    try:
        with without_weights():
            model = make()
    except RefoldError:
        raise
    except Exception as error:
        raise InputError(
            f"make cannot build the network without the numbers of its weights "
            f"({one_line(error)}): load the checkpoint whole, and fold it with "
            "refold.reparameterize"
        ) from error
    require_kind("what make returns", model, nn.Module, "a torch.nn.Module")
    if model.training:
        raise RefusedError(
            "the model is in training mode, where norms use the batch; return model.eval()"
        )
    return unwrap(model)


def _difference(answer: list[Tensor], folded: list[Tensor]) -> float:
    """Return by how much two answers differ, relative to the largest value of an output.

    Raises:
        RefusedError: when they cannot be compared.
    """
    try:
        return relative_errors([compare(answer, folded)])[0][0]
    except IncomparableError as error:
        raise RefusedError(f"the folded network differs on the example: {error}") from error


def _run(model: nn.Module, inputs: Arguments) -> list[Tensor]:
    try:
        return tensor_leaves(run(model, inputs))
    except Exception as error:
        raise unrunnable(model, inputs, error) from error
