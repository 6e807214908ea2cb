"""The network of a run, in the form that trains."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from refold.errors import InputError
from refold.training.loop.run_folder import RunFolder
from refold.training.loop.saves import LAST, Saves
from refold.training.run.begun import begun_with


def network_of(
    run: str | Path, pointer: str | None = LAST, *, model: nn.Module | None = None
) -> nn.Module:
    """Return the network of a run, with its branches, in evaluation mode.

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
        return built_anew(begun, model, loads=True)
    snapshot = Saves(folder.path).read(pointer)
    if snapshot is None:
        raise InputError(
            f"{folder.path} has no checkpoint {pointer!r}: its run has only just started"
        )
    network = built_anew(begun, model, loads=False)
    network.load_state_dict(snapshot.network)
    return network
