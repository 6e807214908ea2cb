"""Bring the weights of a file into the form of a model, and find the model's names in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from refold.checkpoint.deploy import fold_blocks, without_auxiliary, without_statistics
from refold.checkpoint.kinds import some
from refold.checkpoint.layouts import Told, TrainBlock, layouts, train_blocks
from refold.checkpoint.names import common_name, common_names, is_timm_net
from refold.errors import CheckpointError

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Adapted:
    """The weights of a file, and which of them the model takes.

    Args:
        state: the weights in the model's form, under the file's names.
        names: from the model's names to those.
        layout: whose names the file has; empty if unknown.
        folded: the model's names of the kernels that were folded.
        left_out: the keys that the model has no use for.
    """

    state: State
    names: Mapping[str, str]
    layout: str = ""
    folded: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def adapt(state: State, own: State, file: Path, *, eps: float, told: Told) -> Adapted:
    """Fold what the model has folded, and find the model's names in the file.

    Args:
        state: the weights of the file.
        own: those of the model.
        file: for the message.
        eps: of the norms.
        told: what the model says of its modules.

    Raises:
        CheckpointError: when the file has in deploy form what the model has in training form, or
            a block cannot be folded.
    """
    layout = " + ".join(layouts(state))
    if not layout and not told.paired:
        return Adapted(state, {key: key for key in state if key in own})
    _refuse_unfolding(_folded_elsewhere(own, state, told), layout, file)
    blocks = _folded_elsewhere(state, own, told)
    kept = without_statistics(state, but=own)
    kept = kept if train_blocks(own, told) else without_auxiliary(kept, but=own)
    try:
        folded = fold_blocks(kept, blocks, eps)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {file}: {error}") from error
    left_out = tuple(key for key in state if key not in kept)
    names = _matched(folded, own)
    theirs = {block.deploy_keys[0] for block in blocks}
    kernels = tuple(name for name, key in names.items() if key in theirs)
    return Adapted(folded, names, layout, kernels, left_out)


def _matched(state: State, own: State) -> dict[str, str]:
    """Map the model's names to the file's: the same name if there is one, else one like it."""
    names = {key: key for key in state if key in own}
    find = _finder(state, own)
    for key in state:
        name = find(key)
        if name is not None:
            names.setdefault(name, key)
    return names


def _finder(source: State, sink: State) -> Callable[[str], str | None]:
    """Return what finds on one side the name that a name of the other side means."""
    is_timm, sinks = is_timm_net(source), common_names(sink)
    sources = {key: name for name, key in common_names(source).items()}

    def find(key: str) -> str | None:
        return sinks.get(sources.get(key) or common_name(key, is_timm))

    return find


def _folded_elsewhere(source: State, sink: State, told: Told) -> list[TrainBlock]:
    """Return the blocks of one side that the other side has in deploy form, the largest ones."""
    find = _finder(source, sink)

    def is_folded(block: TrainBlock) -> bool:
        branches = set(block.keys) - set(block.deploy_keys)
        return all(map(find, block.deploy_keys)) and not any(map(find, branches))

    found = [block for block in train_blocks(source, told) if is_folded(block)]
    owners: dict[str, TrainBlock] = {}
    for block in sorted(found, key=lambda block: len(block.keys)):
        owners |= dict.fromkeys(block.keys, block)
    return [block for block in found if owners[block.keys[0]] is block]


def _refuse_unfolding(blocks: list[TrainBlock], layout: str, file: Path) -> None:
    if blocks:
        keys = some([block.deploy_keys[0] for block in blocks])
        raise CheckpointError(
            f"checkpoint {file} holds in deploy form{layout and f' of {layout}'} what the model "
            f"has in training form: {keys}; a fold cannot be undone: build the model in deploy "
            "form (deploy=True, or refold.reparameterize it first), or load the weights it was "
            "trained with"
        )
