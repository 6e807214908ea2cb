"""Weights that a run starts from: those of a file, or of another run in either of its forms."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from refold.branches import collapse
from refold.checkpoint import (
    MisfitError,
    load_checkpoint,
    read_weights,
    weights_in,
    write_state_dict,
)
from refold.errors import CheckpointError, InputError, RefoldError
from refold.sources.runs import run_at
from refold.training.loop.saves import BEST, LAST, Saves
from refold.training.loop.snapshot import Snapshot, read_snapshot


class Weights:
    """What lies at a place, as files that `load_checkpoint` reads.

    Args:
        place: as the user named it.
        files: the weights, in one form or in several.
    """

    def __init__(self, place: str, files: Iterator[Path]) -> None:
        self.place, self._files, self._left = place, list[Path](), files

    def files(self) -> Iterator[Path]:
        """Yield the files, each of which is only made when it is asked for."""
        yield from self._files
        for file in self._left:
            self._files.append(file)
            yield file

    def load(self, network: nn.Module, file: Path) -> tuple[str, ...]:
        """Load one of the files, and return what was done to the weights on the way.

        Raises:
            CheckpointError: when it does not fit; the network is then unchanged.
        """
        try:
            return load_checkpoint(network, file).notes
        except CheckpointError as error:
            text = str(error).replace(str(file), self.place)
            if isinstance(error, MisfitError):
                raise MisfitError(text, error.count) from error
            raise CheckpointError(text) from error

    def state(self, file: Path) -> dict[str, Tensor]:
        """Return the tensors of one of the files."""
        return dict(read_weights(file)[0])


@contextmanager
def weights_at(place: str, network_of: Callable[[Path, Path], nn.Module]) -> Generator[Weights]:
    """Open the weights of a file, of a run's folder or of a run's checkpoint.

    Args:
        place: a file; a run, whose best weights are meant; or RUN/checkpoints/last and the like.
        network_of: returns the network of a run with the weights of one of its checkpoints.

    Raises:
        InputError: when nothing lies there.
        CheckpointError: when the checkpoint of a run is damaged.
    """
    path = Path(place)
    saved = _saved_at(path)
    if saved is None:
        if path.is_dir() and weights_in(path) is None:
            raise InputError(f"{place} is a folder without a run: give a file of weights, or a run")
        yield Weights(place, iter([path]))
        return
    try:
        snapshot = read_snapshot(saved)
    except CheckpointError as error:
        raise CheckpointError(f"{saved} cannot be read: {error}") from error
    with tempfile.TemporaryDirectory() as scratch:
        yield Weights(place, _forms(Path(scratch), saved, snapshot, network_of))


def _saved_at(path: Path) -> Path | None:
    """Return the checkpoint of a run that a path means; None for any other file."""
    if path.name.startswith("step-") and path.suffix == ".safetensors" and path.is_file():
        return path
    found = run_at(str(path))
    if found is None:
        return None
    run, pointer = found
    pointers = (BEST, LAST) if pointer is None else (pointer,)
    saved = next((file for name in pointers if (file := Saves(run).named(name))), None)
    if saved is None:
        raise InputError(f"{path} has no checkpoint yet: its run has only just started")
    return saved


def _forms(
    scratch: Path, saved: Path, snapshot: Snapshot, network_of: Callable[[Path, Path], nn.Module]
) -> Iterator[Path]:
    """Write the weights of a run as they trained, then as those of the network without branches."""
    wide = scratch / "wide.safetensors"
    write_state_dict(snapshot.network, wide)
    yield wide
    try:
        plain = collapse(network_of(saved.parent.parent, saved)).state_dict()
    except RefoldError:  # its network is not at hand, or has no branches
        return
    write_state_dict(plain, scratch / "plain.safetensors")
    yield scratch / "plain.safetensors"
