"""Merge parallel paths of the same kind, from one value into one join, into one wide path."""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from refold.algebra.cost import measure, parameters
from refold.algebra.operator import (
    Affine,
    Concat,
    Conv,
    Identity,
    Input,
    Operator,
    Select,
    Sum,
    chain,
    leaves,
    sequence,
)
from refold.algebra.shapes import multiply_adds, shape_after
from refold.engine.decisions import Decisions
from refold.errors import RefusedError
from refold.graph.calls import Kind, kind_of, place_of, shape_readers
from refold.graph.copies.modules import submodule
from refold.graph.fold.fold_pass import FoldPass
from refold.graph.fold.lower import like_of, lower, name_of_new
from refold.graph.fold.record import Fold
from refold.graph.fold.region import Region, Regions, exchange, inputs_of
from refold.graph.layers import ChannelClamp, ChannelSlope
from refold.graph.lift.activations import activation
from refold.graph.lift.context import Context
from refold.graph.lift.lifter import Lifter
from refold.graph.lift.links import Link, link
from refold.graph.lift.piece import Piece
from refold.graph.surgery.editor import Editor
from refold.rules.channels import slices


@dataclass(frozen=True, eq=False)
class Function:
    """A call of an elementwise function.

    Args:
        key: equal for calls that do the same to every channel, or differ in slopes alone.
        call: the layer, or the function of torch.
        args: further arguments.
        kwargs: further arguments by name.
    """

    key: object
    call: nn.Module | Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, context: Context, node: fx.Node) -> Function | None:
        """Return the function that a node calls, None for one that has no twin elsewhere."""
        if activation(context, node) is None:
            return None
        if node.op == "call_module":
            layer = submodule(context.capture.module, str(node.target))
            if isinstance(layer, (ChannelClamp, ChannelSlope)):
                return None
            same = nn.PReLU if isinstance(layer, nn.PReLU) else (type(layer), layer.extra_repr())
            return cls(same, layer)
        args, kwargs = node.args[1:], tuple(sorted(node.kwargs.items()))
        call: Any = _named(str(node.target)) if node.op == "call_method" else node.target
        if call is None or len(node.all_input_nodes) > 1:
            return None
        return cls((call, repr(args), repr(kwargs)), call, args, kwargs)

    @classmethod
    def joint(
        cls, context: Context, nodes: Sequence[fx.Node], widths: Sequence[int]
    ) -> Function | None:
        """Return the one function of all these values side by side, None where there is none.

        Args:
            context: knows the calls.
            nodes: they call functions of one key.
            widths: channels of the value that each reads.
        """
        found = [made for node in nodes if (made := cls.of(context, node)) is not None]
        if len(found) < len(nodes) or len({made.key for made in found}) > 1:
            return None
        first, layers = found[0], [made.call for made in found]
        slopes = [layer.weight for layer in layers if isinstance(layer, nn.PReLU)]
        if not slopes:
            return first
        pairs = zip(slopes, widths, strict=True)
        weight = torch.cat([slope.detach().expand(width) for slope, width in pairs])
        layer = nn.PReLU(len(weight), device=weight.device, dtype=weight.dtype)
        layer.weight = nn.Parameter(weight, any(slope.requires_grad for slope in slopes))
        return cls(first.key, layer)

    def write(self, editor: Editor, value: fx.Node, beside: Sequence[fx.Node]) -> fx.Node:
        """Call it on a value, in front of these nodes and in the frame that holds them all."""
        before = min(beside)
        if isinstance(self.call, nn.Module):
            name, layer = type(self.call).__name__.lower(), copy.deepcopy(self.call)
            return editor.insert_module(layer, [value], before=before, name=name, beside=beside)
        args, kwargs = (value, *self.args), dict(self.kwargs)
        return editor.insert_function(self.call, args, kwargs, before=before, beside=beside)


def _named(method: str) -> Callable[..., Any] | None:
    """Return the function that does what a method of tensors does."""
    return getattr(torch, method, None) or getattr(F, method, None)


@dataclass(frozen=True, eq=False)
class PathStep:
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

    steps: tuple[PathStep, ...]
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
    counts = Counter(inputs_of(region.op))
    ends = [value for value, count in counts.items() if count == 1 and len(value.users) == 1]
    if len(ends) < 2 or region.root in lifter.tainted:
        return []
    if any(any(shape_readers(n)) for n in region.nodes):
        return []
    groups: dict[object, list[Path]] = {}
    for value in ends:
        path = _path_to(lifter, value)
        if path is not None:
            links = (link for step in path.steps for link in step.links)
            key = (path.source, *(_make(lifter, link) for link in links))
            groups.setdefault(key, []).append(path)
    return [paths for paths in groups.values() if len(paths) > 1]


def forks(lifter: Lifter) -> Iterator[fx.Node]:
    """Yield the values from which two steps of one make lead to functions.

    No bundle starts from another value. It takes no regions to know, which cost more to look for.
    """
    for value in lifter.capture.graph.nodes:
        if len(value.users) < 2 or len(readers := list(_affine_readers(lifter, value))) < 2:
            continue
        steps = [step for node in readers if isinstance(step := link(lifter, node), Link)]
        makes = [(step.source, _make(lifter, step), step.node) for step in steps]
        counts = Counter(
            (source, make)
            for source, make, node in makes
            if make is not None and _meets_function(lifter, node)
        )
        if any(count > 1 for count in counts.values()):
            yield value


def _affine_readers(lifter: Lifter, value: fx.Node) -> Iterator[fx.Node]:
    """Yield the affine calls that read a value, or a part of it that another call hands on."""
    for user in value.users:
        handed_on = lifter.lift(user) is None and Kind.VIEW in kind_of(user)
        for node in user.users if handed_on else (user,):
            if isinstance(lifter.lift(node), Piece):
                yield node


def _meets_function(lifter: Lifter, node: fx.Node) -> bool:
    """Say whether a path from a node may end outside the region of the join that it leads to.

    A region takes in every affine step before its join; one of no fixed rank it may leave out.
    """
    while True:
        piece = lifter.lift(node)
        if not isinstance(piece, Piece) or piece.by_rank is not None or not lifter.may_go(node):
            return True
        if piece.join != "none" or len(node.users) != 1:
            return False
        [node] = node.users


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


def _steps(links: list[Link]) -> Iterator[PathStep]:
    """Yield the links, every scale with the layer before it."""
    group: list[Link] = []
    for each in links:
        begins = each.activation or any(isinstance(op, (Conv, Select)) for op in each.ops)
        if group and (begins or group[-1].activation):
            yield PathStep(tuple(group))
            group = []
        group.append(each)
    yield PathStep(tuple(group))


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


@dataclass(frozen=True, eq=False)
class _Level:
    """One step of all the paths, as what it is on the whole: a function, or affine leaves."""

    nodes: tuple[fx.Node, ...]
    function: Function | None = None
    leaves: tuple[Operator, ...] = ()
    rule: str = ""


def merge_siblings(fold: FoldPass) -> bool:
    """Merge parallel paths of the same kind wherever the join takes in all slices of the whole.

    Returns:
        Whether any was merged.
    """
    done, cheap = False, Decisions()
    for node in [node for node, kept in fold.refused.items() if kept.reason in _STAY]:
        del fold.refused[node]  # told anew below, where that is still so
    for found in fold.look() if any(forks(fold.lifter)) else ():
        region = fold.regions.current(found) if done else found
        choices = [] if region is None else bundles(fold.lifter, region)
        # One a round: the other paths then lead into a region that is no more.
        if region is not None and any(_attempt(fold, region, p, cheap) for p in choices):
            done = True
    if done:
        fold.editor.sweep()
        fold.edited()
    return done


_SLICED = "its parallel paths stay apart: what follows would read slices of one path in their place"
_COSTLIER = "its parallel paths stay apart: one path in their place would not be as cheap"
_STAY = frozenset({_SLICED, _COSTLIER})


# what they are together


def _attempt(fold: FoldPass, region: Region, paths: list[Path], cheap: Decisions) -> bool:
    nodes = [link.node for path in paths for step in path.steps for link in step.links]
    return fold.attempt([*nodes, *region.nodes], lambda: _merge(fold, region, paths, cheap))


def _merge(fold: FoldPass, region: Region, paths: list[Path], cheap: Decisions) -> bool:
    whole = Input(paths[0].steps[0].links[0].node, sum(path.width for path in paths))
    if not _takes_in(fold.decisions, region.op, _slices(paths), whole):
        fold.keep(region.root, _SLICED)
        return False
    levels = _levels(fold.lifter, paths, cheap)
    if levels is None:
        fold.keep(region.root, _COSTLIER)
        return False
    inserted = set(fold.editor.edits.inserted)
    try:
        modules = [_lower(fold.lifter, level) for level in levels]
    except RefusedError as error:  # a whole fits the precision of its parts, unless they lie apart
        fold.keep(region.root, str(error))
        return False
    _hand_over(fold, paths, _write(fold, paths, levels, modules))
    fold.touch((), fold.editor.edits.inserted - inserted)
    again = Regions(fold.lifter).region(region.root)
    if again is not None:
        fold.fold_joins(again)
    return True


def _slices(paths: list[Path]) -> dict[fx.Node, Select]:
    """Return each path's channels of the whole value."""
    picks = slices(path.width for path in paths)
    return {path.end: pick for path, pick in zip(paths, picks, strict=True)}


def _levels(lifter: Lifter, paths: list[Path], cheap: Decisions) -> list[_Level] | None:
    """Return the steps of the whole path, None where one would not be as cheap as its parts."""
    found: list[_Level] = []
    for steps in zip(*(path.steps for path in paths), strict=True):
        level = _level(lifter, steps, cheap, is_first=not found)
        if level is None:
            return None
        found.append(level)
    return found


def _level(
    lifter: Lifter, steps: tuple[PathStep, ...], cheap: Decisions, *, is_first: bool
) -> _Level | None:
    nodes = tuple(link.node for step in steps for link in step.links)
    widths = [(lifter.shape(step.links[0].source) or (0, 0))[1] for step in steps]
    if not steps[0].ops and steps[0].links[0].activation is not None:
        together = None if is_first else Function.joint(lifter, nodes, widths)
        return together and _Level(nodes, together)
    parts = [sequence(*step.ops) for step in steps]
    if not is_first:
        pairs = zip(slices(widths), parts, strict=True)
        parts = [sequence(pick, part) for pick, part in pairs]
    shadow, replay = cheap.stand_in(Concat(tuple(sequence(Input("x"), part) for part in parts)))
    rewrite = cheap.rewrite(shadow)
    plain = not any(isinstance(part, (Sum, Concat, Select)) for part in chain(rewrite.op))
    if not plain or len(leaves(rewrite.op)) > max(len(step.ops) for step in steps):
        return None
    rule = ", ".join(dict.fromkeys(step.rule.name for step in rewrite.steps))
    return _Level(nodes, None, leaves(replay.run(rewrite)), rule)


def _takes_in(
    decisions: Decisions, before: Operator, slices: dict[fx.Node, Select], whole: Input
) -> bool:
    """Say whether a join of the slices reads the whole, once, in fewer layers or fewer joins."""
    picks: dict[Any, Select] = slices
    sliced = exchange(before, lambda x: sequence(whole, picks[x.key]) if x.key in picks else x)
    shadow, replay = decisions.stand_in(sliced)
    after = replay.real(decisions.rewrite(shadow).op)
    reads = [value for value in inputs_of(after) if value is whole.key]
    cuts = [sum(isinstance(leaf, Select) for leaf in leaves(form)) for form in (before, after)]
    return len(reads) == 1 and cuts[1] <= cuts[0] and measure(after)[:2] < measure(before)[:2]


# into the graph


def _lower(lifter: Lifter, level: _Level) -> list[nn.Module]:
    tensors = [tensor for node in level.nodes for tensor in _tensors(lifter, node)]
    rank = len(lifter.shape(level.nodes[0]) or ()) - 2
    return [lower(leaf, like_of(tensors, rank)) for leaf in level.leaves]


def _write(
    fold: FoldPass, paths: list[Path], levels: list[_Level], modules: list[list[nn.Module]]
) -> fx.Node:
    """Write the whole path in front of the first of the old ones; return its value."""
    value = paths[0].source
    for level, made in zip(levels, modules, strict=True):
        if level.function is not None:
            shape = fold.lifter.shapes[value]
            value = level.function.write(fold.editor, value, level.nodes)
            fold.lifter.shapes[value] = shape
        for leaf, module in zip(level.leaves, made, strict=True):
            value = _write_leaf(fold, level, leaf, module, value)
    return value


def _write_leaf(
    fold: FoldPass, level: _Level, leaf: Operator, module: nn.Module, value: fx.Node
) -> fx.Node:
    place = min(level.nodes)
    before = fold.lifter.shapes[value]
    after = shape_after(leaf, before)
    node = fold.editor.insert_module(
        module, [value], before=place, name=name_of_new(leaf), beside=level.nodes
    )
    if after is not None:
        fold.lifter.shapes[node] = after
    old = sum(t.numel() for n in level.nodes for t in _tensors(fold.lifter, n))
    macs = multiply_adds(leaf, before, after)
    where, detail = str(node.target), _names(str(node.target), level.nodes)
    path, size = fold.lifter.capture.full(where), parameters(leaf)
    made_of = tuple(map(fold.path, level.nodes))
    fold.folds.append(Fold(path, level.rule, detail, old, size, macs, macs, made_of))
    return node


def _names(where: str, nodes: tuple[fx.Node, ...]) -> str:
    """Return the names of layers, told from the block that their whole stands in."""
    block = where.rpartition(".")[0] + "."
    names = [place_of(node).removeprefix(block) for node in nodes]
    short = names if len(names) < 5 else [*names[:2], f"{len(names) - 3} more", names[-1]]
    return " + ".join(short)


def _tensors(lifter: Lifter, node: fx.Node) -> list[Tensor]:
    if node.op == "call_module":
        return list(submodule(lifter.capture.module, str(node.target)).parameters())
    found: list[Any] = [lifter.constants.value(arg) for arg in node.all_input_nodes]
    return [value for value in found if isinstance(value, Tensor)]


def _hand_over(fold: FoldPass, paths: list[Path], value: fx.Node) -> None:
    """Let the join read slices of the whole path's value."""
    for end, pick in _slices(paths).items():
        [reader] = end.users
        entry = (slice(None), slice(pick.index[0], pick.index[-1] + 1))
        part = fold.editor.insert_function(operator.getitem, (value, entry), before=reader)
        fold.lifter.shapes[part] = fold.lifter.shapes[end]
        fold.editor.replace(end, part)
    steps = [step for path in paths for step in path.steps]
    fold.editor.discard([link.node for step in steps for link in step.links])
