"""A pruned network as a file: its weights, and what its shape is made of again."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from refold.errors import InputError, RefoldError, RefusedError
from refold.files import is_file
from refold.sources.runs import run_at

if TYPE_CHECKING:
    import torch
    from torch import nn

KEY = "pruned"
"""The entry of a file that says what its network is made of."""


@dataclass(frozen=True)
class Narrowing:
    """One pruning.

    Args:
        gone: channels that went, by layer of the folded network.
        remove_residuals: whether residuals were removed first.
    """

    gone: Mapping[str, list[int]]
    remove_residuals: bool = False


@dataclass(frozen=True)
class Origin:
    """What a pruned network was, and what went.

    Args:
        model: the MODEL that was pruned.
        sizes: of its inputs, without the batch.
        steps: what went, pruning by pruning.
        options: that MODEL was built with, such as `num_classes`.
    """

    model: str
    sizes: tuple[tuple[int, ...], ...]
    steps: tuple[Narrowing, ...]
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def placed(self) -> Origin:
        """Return it with the whole path of a file or a run, so that it holds in any folder."""
        kind, colon, rest = self.model.partition("hf:")
        if colon and not kind:
            return replace(self, model=f"hf:{_whole(rest)}")
        is_place = ".py:" in self.model or run_at(self.model) is not None
        return replace(self, model=_whole(self.model)) if is_place else self


def _whole(name: str) -> str:
    return os.path.abspath(name)  # noqa: PTH100 - as it is, links and all


def next_origin(
    model: str,
    sizes: tuple[tuple[int, ...], ...],
    step: Narrowing,
    options: Mapping[str, Any] | None = None,
) -> Origin:
    """Return what a network comes from that was pruned now, and perhaps before.

    Args:
        model: the MODEL that was pruned; a pruned file itself stands for what it comes from.
        sizes: of its inputs, without the batch.
        step: what went.
        options: that MODEL was built with.
    """
    if is_pruned(model):
        before = origin_of(Path(model))
        return replace(before, sizes=sizes, steps=(*before.steps, step))
    return Origin(model, sizes, (step,), dict(options or {}))


Build = Callable[[str, dict[str, Any]], Any]


def is_pruned(name: str) -> bool:
    """Say whether MODEL is a file that holds a pruned network, not weights alone."""
    return Path(name).suffix.lower() == ".safetensors" and is_file(Path(name)) and _says(name)


def _says(name: str) -> bool:
    status = Path(name).stat()
    return KEY in _entries(_whole(name), status.st_mtime_ns, status.st_size)


@cache
def _entries(name: str, changed: int, size: int) -> dict[str, Any]:
    """Return what a file says of itself; its time and size stand for what is in it."""
    del changed, size
    from refold.exporting import described

    try:
        return described(name)
    except RefoldError:  # whoever reads its weights says what is wrong
        return {}


def origin_of(path: Path) -> Origin:
    """Return what the pruned network in a file comes from.

    Raises:
        InputError: when the file does not say so, or says what cannot be.
    """
    from refold.exporting import described

    try:
        said = described(path)[KEY]
        sizes = tuple(tuple(int(n) for n in size) for size in said["sizes"])
        steps = tuple(
            Narrowing(
                {str(where): [int(n) for n in rows] for where, rows in step["gone"].items()},
                bool(step["remove_residuals"]),
            )
            for step in said["steps"]
        )
        return Origin(str(said["model"]), sizes, steps, dict(said["options"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} does not say which network it was pruned from: write it with refold prune"
        ) from error


def about_pruned(path: Path) -> dict[str, Any]:
    """Return what the file of a pruned network says beside that: classes, how images are prepared.

    Raises:
        InputError: when it cannot be read.
    """
    from refold.exporting import described

    return {key: value for key, value in described(path).items() if key != KEY}


def rebuilt(path: Path, build: Build) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """Return the pruned network of a file, with its weights, and zeros that it accepts.

    Args:
        path: one that `mark_pruned` marked.
        build: builds the network that a MODEL names, with options.

    Raises:
        InputError: when the network that it comes from cannot be built.
        RefusedError: when that has become another network.
    """
    import torch

    from refold.checkpoint import load_checkpoint
    from refold.errors import CheckpointError
    from refold.pruning import narrow

    origin = origin_of(path)
    try:
        source = build(origin.model, dict(origin.options))
    except RefoldError as error:
        raise InputError(f"{path} was pruned from {origin.model}: {error}") from error
    example = tuple(torch.zeros(1, *size) for size in origin.sizes)
    try:
        model = source.eval()
        for step in origin.steps:
            model = narrow(model, example, step.gone, remove_residuals=step.remove_residuals)
        load_checkpoint(model, path)
    except (CheckpointError, InputError, AttributeError, IndexError) as error:
        raise RefusedError(
            f"{path} does not fit what {origin.model} is pruned to now ({error}): that network, or "
            "refold, has changed since; prune it again"
        ) from error
    return model, example


def mark_pruned(model: nn.Module, path: Path, origin: Origin, build: Build) -> None:
    """Say in a written `.safetensors` file what its network is pruned from, once that is checked.

    Args:
        model: the network whose weights the file holds.
        path: the file.
        origin: what it comes from.
        build: builds the network that a MODEL names, with options.

    Raises:
        RefusedError: when its shape cannot be made again; the file then stays as it was.
    """
    from refold.equivalence import verify
    from refold.exporting import describe, described

    before = described(path)
    describe(path, {**before, KEY: asdict(origin.placed())})
    try:
        again, example = rebuilt(path, build)
        proof = verify(model, again, cast("Any", example))
        if not proof:
            raise RefusedError(f"it is another network when it is made again: {proof}")
    except RefoldError as error:
        describe(path, before)
        raise RefusedError(f"{path} holds weights alone: {error}") from error
