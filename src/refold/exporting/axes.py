"""Which axes of a file's inputs take any size: chosen by the user, and tried at two sizes each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from refold.equivalence import run
from refold.errors import ExportError, InputError, one_line
from refold.inputs import Arguments, tensors

Dynamic = str | Mapping[Any, Any]
"""`auto`, `none`, `batch`, `size`, `batch,size`, or axes with their names by input."""

_WORDS = ("none", "batch", "size")
_SPATIAL = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}
_BATCHES = (1, 3)  # the size torch.export would freeze, and one that no example has


@dataclass(frozen=True)
class Axes:
    """Example inputs, of which some axes are free.

    Args:
        inputs: the example.
        free: for each tensor in them, in order, the names of its free axes.
    """

    inputs: Arguments
    free: tuple[dict[int, str], ...]

    @property
    def sizes(self) -> dict[str, int]:
        """The size that each free axis has in the example, by name."""
        pairs = zip(tensors(self.inputs), self.free, strict=True)
        return {name: x.shape[axis] for x, named in pairs for axis, name in named.items()}

    @property
    def leading(self) -> set[str]:
        """The names of those that come first in some input, as a batch does."""
        return {named[0] for named in self.free if 0 in named}

    @property
    def example(self) -> Arguments:
        """The inputs with every free axis at 2 or more: torch.export would freeze a size of 1."""
        return self.of({name: max(size, 2) for name, size in self.sizes.items()})

    @property
    def dynamic_shapes(self) -> Any:
        """What torch.export asks for: an entry for every leaf of the inputs."""
        named = {name: torch.export.Dim(name, min=1) for name in self.leading}
        rows = iter(self.free)

        def shape(leaf: object) -> dict[int, Any] | None:
            if not isinstance(leaf, Tensor):
                return None
            # Sizes are often even, or a multiple of 32: only a hint may have such a condition.
            found = {axis: named.get(name, _ANY) for axis, name in next(rows).items()}
            return found or None

        return pytree.tree_map(shape, self.inputs)

    @property
    def shapes(self) -> list[tuple[int | str, ...] | None]:
        """The shape of every leaf with names for free sizes; None for what is not a tensor."""
        rows = iter(self.free)

        def shape(leaf: object) -> tuple[int | str, ...] | None:
            if not isinstance(leaf, Tensor):
                return None
            named = next(rows)
            return tuple(named.get(axis, size) for axis, size in enumerate(leaf.shape))

        return [shape(leaf) for leaf in pytree.tree_leaves(self.inputs)]

    def of(self, sizes: Mapping[str, int]) -> Arguments:
        """Return inputs of other sizes, by the name of the axis; repeated parts are shifted."""
        rows = iter(self.free)

        def resized(tensor: Tensor) -> Tensor:
            for axis, name in next(rows).items():
                tensor = _resize(tensor, axis, sizes.get(name, tensor.shape[axis]))
            return tensor

        return pytree.tree_map_only(Tensor, resized, self.inputs)

    def trials(self, model: nn.Module) -> list[tuple[str, Arguments]]:
        """Return inputs that have every free axis at two sizes, and what to call them.

        Raises:
            ExportError: when the model itself takes no other sizes than the example's.
        """
        if not self.sizes:
            return [("", self.inputs)]
        small, large = _BATCHES
        first = dict.fromkeys(self.leading, small)
        self._require(model, first)
        rest = [name for name in self.sizes if name not in self.leading]
        failure: ExportError | None = None
        for grow in _GROWTHS:
            second = {name: grow(self.sizes[name], at) for at, name in enumerate(rest)}
            second |= dict.fromkeys(self.leading, large)
            try:
                self._require(model, second)
            except ExportError as error:
                failure = failure or error
            else:
                return [(_said(sizes), self.of(sizes)) for sizes in (self.sizes | first, second)]
            if not rest:
                break
        assert failure is not None
        raise failure

    def _require(self, model: nn.Module, sizes: Mapping[str, int]) -> None:
        try:
            run(model, self.of(sizes))
        except Exception as error:  # a stranger's forward may raise anything
            raise ExportError(
                f"{type(model).__name__} itself does not run at {_said(sizes)}: {one_line(error)}"
            ) from error


_ANY = torch.export.Dim.DYNAMIC
_LARGE = 256  # a size from which a larger one could fill the memory
# Other sizes to try, most telling first: height and width change unlike each other.
_GROWTHS: tuple[Callable[[int, int], int], ...] = (
    lambda size, at: _shrunk(size, at) if size >= _LARGE else _grown(size, at),
    lambda size, at: size + 32 * (at + 1),
    lambda size, at: 2 * size,
    lambda size, at: max(size // 2, 1),
    lambda size, at: size + 1,
)


def _shrunk(size: int, at: int) -> int:
    return size // 2 if at % 2 else size - size // 4


def _grown(size: int, at: int) -> int:
    return 2 * size if at % 2 else size + size // 2


def choose(dynamic: Dynamic, inputs: Arguments, names: Sequence[str]) -> Axes:
    """Return the example inputs with the axes that are to be free.

    Args:
        dynamic: the choice.
        inputs: the example.
        names: of its tensors, in order.

    Raises:
        InputError: when the choice names no axis that there is, or the inputs hold no tensor.
    """
    held = tensors(inputs)
    if not held:
        raise InputError("example_inputs holds no tensor: a file's inputs are tensors")
    if isinstance(dynamic, str):
        return Axes(inputs, _by_word(dynamic, held, names))
    if not isinstance(cast(Any, dynamic), Mapping):
        raise InputError(f"dynamic is a word such as 'batch', or axes by input, got {dynamic!r}")
    free: list[dict[int, str]] = [{} for _ in held]
    for key, axes in dynamic.items():
        at = key if isinstance(key, int) else names.index(key) if key in names else -1
        if not 0 <= at < len(held):
            raise InputError(
                f"dynamic names {key!r}, which is no input: the inputs are {', '.join(names)}"
            )
        free[at] = _by_hand(axes, held[at], names[at])
    axes = Axes(inputs, tuple(free))
    _require_one_size(axes, names)
    return axes


def words_of(dynamic: str) -> list[str]:
    """Return the words of a choice of axes.

    Raises:
        InputError: when it is none.

    Examples:
        >>> words_of("batch, size")
        ['batch', 'size']
    """
    words = [word.strip() for word in dynamic.split(",")]
    if not set(words) <= set(_WORDS) or ("none" in words and len(words) > 1):
        raise InputError(
            f"dynamic={dynamic!r} is not a choice: use 'none', 'batch', 'size', 'batch,size', or "
            "the axes by input, such as {'image': {0: 'batch', 2: 'height'}}"
        )
    return words


def _by_word(
    dynamic: str, held: Sequence[Tensor], names: Sequence[str]
) -> tuple[dict[int, str], ...]:
    words = words_of(dynamic)
    count = held[0].shape[0] if held[0].ndim else None
    free: list[dict[int, str]] = []
    taken: dict[str, int] = {}
    for tensor, name in zip(held, names, strict=True):
        row: dict[int, str] = {}
        if "batch" in words and tensor.ndim and tensor.shape[0] == count:
            row[0] = "batch"
        if "size" in words:
            for axis, axis_name in enumerate(_SPATIAL.get(tensor.ndim - 2, ()), 2):
                if tensor.shape[axis] == 1 < max(x.shape[axis] for x in held if x.ndim > axis):
                    continue  # it is spread over the others' size
                same = taken.setdefault(axis_name, tensor.shape[axis]) == tensor.shape[axis]
                row[axis] = axis_name if same else f"{name}_{axis_name}"
        free.append(row)
    return tuple(free)


def _by_hand(axes: Any, tensor: Tensor, name: str) -> dict[int, str]:
    if not isinstance(axes, Mapping | Sequence | set) or isinstance(axes, str):
        raise InputError(f"dynamic: {name} needs its axes, such as {{0: 'batch'}}, got {axes!r}")
    rows = axes.items() if isinstance(axes, Mapping) else [(at, f"{name}_{at}") for at in axes]
    row: dict[int, str] = {}
    for axis, label in rows:
        if not isinstance(axis, int) or not -tensor.ndim <= axis < tensor.ndim:
            raise InputError(f"dynamic names axis {axis!r} of {name}, which has {tensor.ndim} axes")
        if not str(label).isidentifier():
            raise InputError(f"dynamic: {label!r} is not a name for an axis: use letters and _")
        row[axis % tensor.ndim] = str(label)
    return dict(sorted(row.items()))


def _require_one_size(axes: Axes, names: Sequence[str]) -> None:
    for tensor, row, name in zip(tensors(axes.inputs), axes.free, names, strict=True):
        for axis, label in row.items():
            if tensor.shape[axis] != axes.sizes[label]:
                raise InputError(
                    f"dynamic gives axes of two sizes one name, {label!r}: "
                    f"{tensor.shape[axis]} in {name}, {axes.sizes[label]} elsewhere"
                )


def _resize(tensor: Tensor, axis: int, size: int) -> Tensor:
    """Repeat what there is along an axis; each repetition is shifted, so that all differ."""
    count = tensor.shape[axis]
    if size <= count:
        return tensor.narrow(axis, 0, size)
    parts = [tensor]
    for turn in range(1, -(-size // count)):
        other = tensor.ndim - 1 if axis != tensor.ndim - 1 else axis
        parts.append(tensor.roll(turn, dims=other))
    return torch.cat(parts, dim=axis).narrow(axis, 0, size).contiguous()


def _said(sizes: Mapping[str, int]) -> str:
    """Return sizes in words.

    >>> _said({"batch": 3, "height": 48})
    'batch 3, height 48'
    """
    return ", ".join(chain(f"{name} {size}" for name, size in sizes.items()))
