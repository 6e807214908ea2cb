"""The network of a run, in the form that trains."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from refold.errors import CheckpointError, InputError
from refold.sources.runs import BEST, LAST, Opened, open_runs_with
from refold.training.data.augment import image_side
from refold.training.data.datasets import Data, open_data
from refold.training.loop.run_folder import RunFolder
from refold.training.loop.saves import Saves
from refold.training.run.about import about_run, known_data
from refold.training.run.begun import Begun, begun_with, read_begun


def network_of(
    run: str | Path, pointer: str | None = LAST, *, model: nn.Module | None = None
) -> nn.Module:
    """Return the network of a run, with its branches, in evaluation mode.

    The images are needed as it started, and of a run that has not finished.

    Args:
        run: its folder.
        pointer: "last" or "best" for the weights of such a checkpoint; None as it started.
        model: the network that was given to the run, where one was; it is changed.

    Raises:
        InputError: when there is no such run, or its network was given then and is not now, or the
            other way round.
        CheckpointError: when the checkpoint is missing or damaged.
    """
    from refold.training.run.network import built_anew

    folder = RunFolder(Path(run))
    begun = begun_with(folder, model)
    if pointer is None:
        data = open_data(begun.place, begun.recipe.task)
        return built_anew(begun, data, model, loads=True)
    return _with_weights(folder, begun, known_data(folder, begun), pointer, model)


def _with_weights(
    folder: RunFolder, begun: Begun, data: Data, pointer: str, model: nn.Module | None
) -> nn.Module:
    from refold.training.run.network import built_anew

    snapshot = Saves(folder.path).read(pointer)
    if snapshot is None and pointer not in (BEST, LAST):
        raise InputError(f"{folder.path} has no checkpoint {pointer!r}: give {BEST!r} or {LAST!r}")
    if snapshot is None:
        raise InputError(
            f"{folder.path} has no checkpoint {pointer!r}: its run has only just started"
        )
    network = built_anew(begun, data, model, loads=False)
    try:
        network.load_state_dict(snapshot.network)
    except RuntimeError as error:
        raise CheckpointError(
            f"the checkpoint {pointer!r} of {folder.path} does not fit the network that "
            f"{begun.recipe.model} is now: it has changed since the run"
        ) from error
    return network


@open_runs_with
def _opened(run: Path, pointer: str | None) -> Opened:
    folder = RunFolder(run)
    begun = read_begun(folder)
    if begun.given:
        files = [name for name in ("deploy.pt2", "deploy.onnx") if (run / name).is_file()]
        instead = f"its {' or '.join(files)}, or " if files else ""
        raise InputError(
            f"{run} was trained in Python with a network of one's own, which its folder does not "
            f"hold: give {instead}path/to/file.py:factory and --checkpoint {run}"
        )
    data = known_data(folder, begun)
    named = Saves(run).named
    chosen = pointer or (BEST if named(BEST) else LAST)
    side = image_side(begun.recipe.augment, data)
    network = _with_weights(folder, begun, data, chosen, None)
    return Opened(network, (data.channels, side, side), about_run(folder, begun))
