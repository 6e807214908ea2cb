"""Paths of the same make: from one value into one join, with layers and functions of one kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from refold.algebra.operator import Affine, Conv, Identity, Operator, Select
from refold.graph.branch_links import Link, link
from refold.graph.functions import Function
from refold.graph.lift import Lifter
from refold.graph.region import Region
from refold.graph.shape_readers import shape_readers
from refold.graph.sources import inputs_of


@dataclass(frozen=True, eq=False)
class Step:
    """A function, or a layer with the norms after it.

    Args:
        links: its nodes in order.
    """

    links: tuple[Link, ...]

    @property
    def ops(self) -> tuple[Operator, ...]:
        """What it does, where it is affine."""
        return tuple(op for link in self.links for op in link.ops)


@dataclass(frozen=True, eq=False)
class Path:
    """The steps from a value that several read to one that only a join reads.

    Args:
        steps: the first first.
        width: channels of its value.
    """

    steps: tuple[Step, ...]
    width: int

    @property
    def source(self) -> fx.Node:
        """The value it starts from."""
        return self.steps[0].links[0].source

    @property
    def end(self) -> fx.Node:
        """The value it gives."""
        return self.steps[-1].links[-1].node


def bundles(lifter: Lifter, region: Region) -> list[list[Path]]:
    """Return the paths into a region that start from one value and have the same steps."""
    if region.root in lifter.tainted or any(any(shape_readers(n)) for n in region.nodes):
        return []
    values = list(inputs_of(region.op))
    groups: dict[object, list[Path]] = {}
    for value in values:
        once = values.count(value) == 1 and len(value.users) == 1
        path = _path_to(lifter, value) if once else None
        if path is not None:
            links = (link for step in path.steps for link in step.links)
            key = (path.source, *(_make(lifter, link) for link in links))
            groups.setdefault(key, []).append(path)
    return [paths for paths in groups.values() if len(paths) > 1]


def _path_to(lifter: Lifter, value: fx.Node) -> Path | None:
    """Follow a value back to the first that others read too, or of which it is a slice."""
    links: list[Link] = []
    current, shape = value, lifter.shape(value)
    while shape is not None and (not links or len(current.users) == 1):
        step = link(lifter, current)
        if not isinstance(step, Link) or _make(lifter, step) is None:
            break
        links.insert(0, step)
        current = step.source
        if any(isinstance(op, Select) for op in step.ops):
            break
    convs = [op for step in links for op in step.ops if isinstance(op, Conv)]
    if shape is None or not convs or len(shape) != len(convs[-1].axes) + 2:
        return None
    return Path(tuple(_steps(links)), shape[1])


def _steps(links: list[Link]) -> Iterator[Step]:
    """Yield the links, every scale with the layer before it."""
    group: list[Link] = []
    for each in links:
        begins = each.activation or any(isinstance(op, (Conv, Select)) for op in each.ops)
        if group and (begins or group[-1].activation):
            yield Step(tuple(group))
            group = []
        group.append(each)
    yield Step(tuple(group))


def _make(lifter: Lifter, step: Link) -> object:
    """Return what two steps have in common that may be one, None for a step of another kind."""
    if step.gate or step.windows or step.source in lifter.tainted:
        return None
    if step.activation is not None:
        function = Function.of(lifter, step.node)
        return None if function is None else function.key
    marks = [_mark(op) for op in step.ops]
    return None if None in marks else tuple(marks)


def _mark(op: Operator) -> object:
    if isinstance(op, Conv) and op.axes and not op.transposed:
        return Conv, op.axes, op.mode
    return type(op) if isinstance(op, (Affine, Identity, Select)) else None
