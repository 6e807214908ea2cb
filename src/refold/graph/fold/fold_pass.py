"""The fold pass: find regions, simplify them, and write the result into the graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import TypeVar, cast

from torch import Tensor, fx, nn

from refold.algebra.cost import measure, parameters
from refold.algebra.operator import (
    Concat,
    Conv,
    Flatten,
    Identity,
    Input,
    Operator,
    Patches,
    Resample,
    Select,
    Sequence,
    Sum,
    chain,
    leaves,
    made_of,
    sequence,
)
from refold.algebra.row import Reshaped, Unflatten
from refold.algebra.shapes import multiply_adds
from refold.engine.decisions import Decisions
from refold.engine.ledger import Rewrite
from refold.engine.memory import made_ready
from refold.engine.replay import Replay
from refold.engine.row_slices import fold_rows_in_slices
from refold.engine.slices import fold_in_slices
from refold.errors import RefusedError
from refold.graph.calls import place_of, shape_readers
from refold.graph.fold.emit import Emitter
from refold.graph.fold.lower import as_call
from refold.graph.fold.record import Fold, Kept
from refold.graph.fold.region import Region, Regions, node_of, source_of
from refold.graph.fold.result import Emitted
from refold.graph.fold.setbacks import LeftAlone, Step
from refold.graph.lift.lifter import Lifter
from refold.graph.lift.piece import Piece
from refold.graph.policy import Policy
from refold.graph.surgery.editor import Editor
from refold.graph.surgery.edits import UnwritableError, alive
from refold.graph.trace.aliases import AliasGroups
from refold.graph.trace.effects import may_alias
from refold.rules import RULES, Rule
from refold.rules.phases import merge_patches

T = TypeVar("T")
LAID_OUT = tuple(rule for rule in RULES if rule is not merge_patches)
"""What may be done where windows stay laid out, as somebody else reads them or asks their size."""
CHAIN_RULES = tuple(rule for rule in RULES if rule.window in ("series", "commute"))


@dataclass
class FoldPass:
    """Folds every region of one capture until nothing changes.

    Args:
        lifter: lifts the capture's nodes.
        editor: edits its graph.
        policy: which parts may grow, and which stay apart.
        left: the steps that failed before.
    """

    lifter: Lifter
    editor: Editor
    policy: Policy = field(default_factory=Policy)
    left: LeftAlone = field(default_factory=LeftAlone)

    def __post_init__(self) -> None:
        self.decisions = Decisions(self.policy.allow_growth)
        self._growing = Decisions(allow_growth=True)
        self.folds: list[Fold] = []
        self.refused: dict[fx.Node, Kept] = {}
        self.steps: list[Step] = []
        self._made_of: dict[fx.Node, frozenset[str]] = {}
        self._settled: set[tuple[tuple[fx.Node, ...], bool]] = set()
        self.regions, self.largest = Regions(self.lifter), list[Region]()
        self._is_edited = True

    def look(self) -> list[Region]:
        """Return the largest regions, looked for again where the graph was edited since."""
        if self._is_edited:
            self.regions = Regions(self.lifter)
            self.largest = self.regions.largest()
            self._is_edited = False
        return self.largest

    def edited(self) -> None:
        """Note that the graph is another one now."""
        self._is_edited = True

    def lift_anew(self) -> None:
        """Take a new lifter: the graph's calls change other values in place than before."""
        self.lifter = Lifter.of(self.lifter.capture)
        self.edited()

    def run(self, *, chains: bool = True) -> list[Fold]:
        """Fold to a fixed point: joins first, then plain chains, which keep their places.

        Afterwards `regions` and `largest` are those of the result.

        Args:
            chains: fold these as well.
        """
        while self._sweep(chains=False) or (chains and self._sweep(chains=True)):
            pass
        return self.folds

    def _sweep(self, *, chains: bool) -> bool:
        changed = False
        write = self.fold_chain if chains else self.fold_joins
        largest, regions = self.look(), self.regions
        if chains:
            regions = Regions(self.lifter, chains=True)
            largest = regions.largest()
        with made_ready(_largest_kernels(largest, joins=not chains)):
            for found in largest:
                region = regions.current(found)
                if region is not None and (region.nodes, chains) not in self._settled:
                    if self.attempt(region.nodes, partial(write, region)):
                        changed = True
                    else:
                        self._settled.add((region.nodes, chains))
        return changed

    def attempt(self, nodes: Iterable[fx.Node], write: Callable[[], bool]) -> bool:
        """Do one step of the fold; return whether it did anything.

        Args:
            nodes: where it starts from.
            write: does it.

        Raises:
            SetbackError: when it fails; it is left alone the next time.
        """
        places = list(nodes)
        step = Step(frozenset[str]().union(*map(self._parts, places)), set(places))
        reason = self.left.reason(step)
        if reason is not None:
            self._refuse(places, reason)
            return False
        self.steps.append(step)
        try:
            done = write()
        except Exception as error:  # whatever it is, it must not cost the other folds
            raise self.left.setback([step], error) from error
        if not done:
            self.steps.remove(step)
        return done

    def commit(self, target: nn.Module) -> nn.Module:
        """Write what was folded into a skeleton of the model; return the model.

        Raises:
            SetbackError: when that fails; the steps that led to it are left alone the next time.
        """
        before = self.editor.edits.before
        names = {node.name: node for node in before}
        steps = [
            {*(names[name] for name in step.parts if name in names), *(step.nodes & before.keys())}
            for step in self.steps
        ]
        return self.finish(partial(self.editor.commit, target, steps))

    def finish(self, write: Callable[[], T]) -> T:
        """Return what a writer makes of the edited graph.

        Raises:
            SetbackError: when it fails; the steps that led to it are left alone the next time.
        """
        try:
            return write()
        except Exception as error:
            nodes = error.nodes if isinstance(error, UnwritableError) else set[fx.Node]()
            guilty = [step for step in self.steps if not nodes.isdisjoint(step.nodes)]
            raise self.left.setback_of_latest(guilty or self.steps, error) from error

    def _parts(self, node: fx.Node) -> frozenset[str]:
        return self._made_of.get(node, frozenset({node.name}))

    def touch(self, old: Iterable[fx.Node], made: Iterable[fx.Node]) -> None:
        """Note which nodes the present step replaced and which it made."""
        if not self.steps:  # a test writes outside any step
            return
        step = self.steps[-1]
        new = [node for node in made if node in self.editor.edits.inserted]
        step.nodes.update(old, new)
        self._made_of.update((node, step.parts) for node in new)

    def _refuse(self, nodes: Iterable[fx.Node], reason: str) -> None:
        """Note one reason for several nodes, as one entry of the account."""
        layers = [node for node in nodes if isinstance(self.lifter.lift(node), Piece)]
        where = " + ".join(dict.fromkeys(place_of(node) for node in layers))
        kept = Kept(self.lifter.capture.full(where), reason)
        self.refused.update(dict.fromkeys(layers, kept))

    def keep(self, node: fx.Node, reason: str) -> None:
        """Note why a call stays."""
        self.refused[node] = Kept(self.path(node), reason)

    def decisions_on(self, region: Region) -> Decisions:
        """Return what decides on a region: whether it may grow can depend on where it stands."""
        if not self.policy.grown or not self.policy.grows(map(self.path, region.nodes)):
            return self.decisions
        return self._growing

    def fold_chain(self, region: Region) -> bool:
        """Fold a chain without joins where that leaves fewer layers."""
        if len(region.leaves) < 2:
            return False
        done = self._fold_chain(region, RULES)
        if done is not False:
            return bool(done)
        windows = any(isinstance(leaf, Patches) for leaf in region.leaves)
        if not self._fold_before(region) and not (windows and self._fold_chain(region, LAID_OUT)):
            return False
        for node in region.nodes:  # what is left is looked at again
            self.refused.pop(node, None)
        return True

    def _fold_chain(self, region: Region, rules: tuple[Rule, ...]) -> bool | None:
        """Fold a chain; None where that would gain nothing, False where it was refused."""
        decisions = self.decisions_on(region)
        shadow, replay = decisions.stand_in(region.op)
        rewrite = decisions.rewrite(shadow, rules)
        if measure(rewrite.op) >= measure(shadow):
            return None
        return self.write(region, rewrite, replay)

    def _fold_before(self, region: Region) -> bool:
        """Fold a chain up to a value whose size is asked for, which then is its whole value."""
        regions = Regions(self.lifter, chains=True)
        asked = (n for n in reversed(region.nodes[:-1]) if any(shape_readers(n)))
        parts = (part for node in asked if (part := regions.region(node)) is not None)
        return any(self._fold_chain(part, RULES) for part in parts)

    def fold_joins(self, region: Region) -> bool:
        """Fold an expression with joins where that gains more than folding its chains."""
        if measure(region.op)[1] == 0:
            return False
        if self.policy.keeps_apart(map(self.path, region.nodes)):
            self._refuse(region.nodes, "its branches stay apart, as was asked for")
            return False
        decisions = self.decisions_on(region)
        shadow, replay = decisions.stand_in(region.op)
        rewrite = decisions.rewrite(shadow)
        layers, joins, _ = measure(rewrite.op)
        if layers > 1 or joins:  # else chains alone leave more
            apart = decisions.rewrite(shadow, CHAIN_RULES)
            if measure(rewrite.op)[:2] >= measure(apart.op)[:2]:
                return False
        return self.write(region, only_across_joins(rewrite, shadow), replay)

    def write(self, region: Region, rewrite: Rewrite, replay: Replay) -> bool:
        """Put a simplified region into the graph; keep the old one where a value does not fit."""
        return self.write_all([(region, rewrite, replay)])

    def write_all(self, plans: list[tuple[Region, Rewrite, Replay]]) -> bool:
        """Put several simplified regions into the graph, or none when one of them cannot be."""
        ready = [self._prepare(*plan) for plan in plans]
        done = [item for item in ready if item is not None]
        if len(done) < len(ready):
            return False
        for (region, rewrite, _), (emitter, real) in zip(plans, done, strict=True):
            rules = dict.fromkeys(step.rule.name for step in rewrite.steps)
            self._put(region, emitter, real, ", ".join(rules))
        return True

    def put(self, region: Region, real: Operator, rule: str) -> bool:
        """Put operators into the graph in place of a region that they are equal to."""
        try:
            emitter = Emitter(self.lifter, self.editor, region, real)
        except RefusedError as error:
            self._refuse(region.nodes, str(error))
            return False
        self._put(region, emitter, real, rule, detail=rule)
        return True

    def _put(
        self, region: Region, emitter: Emitter, real: Operator, rule: str, detail: str = ""
    ) -> None:
        self.edited()
        costs = {leaf: self._macs(leaf) for leaf in region.leaves}
        emitted = emitter.write()
        self.touch(region.nodes, emitter.made)
        self._note(region, rule, detail, real, costs, emitted)

    def _prepare(
        self, region: Region, rewrite: Rewrite, replay: Replay
    ) -> tuple[Emitter, Operator] | None:
        sliced = fold_in_slices(rewrite, region.op) or fold_rows_in_slices(rewrite, region.op)
        real = sliced or replay.run(rewrite)
        first, *rest = chain(real)
        is_view = isinstance(first, Input) and all(isinstance(part, _VIEWS) for part in rest)
        if is_view and self.shares_anew(region.root, cast(fx.Node, cast(Input, first).key)):
            self._refuse(region.nodes, TWICE)
            return None
        try:
            emitter = Emitter(self.lifter, self.editor, region, real)
        except RefusedError as error:
            self._refuse(region.nodes, str(error))
            return None
        if any(as_call(leaf) is None for leaf in emitter.result.torn):
            # A slice is a view, and what is left of it would be a copy.
            return None
        return emitter, real

    def shares_anew(self, root: fx.Node, source: fx.Node) -> bool:
        """Say whether a value that is another's from now on shares memory that may change.

        A caller may change a result in place; an input or another result must not change with it.
        Nor may what reads the one read what the model's code writes into the other.
        """
        is_seen = len(source.users) > 1 or _is_given(source) or bool(may_alias(source))
        if not is_handed_out(root) and not is_seen:
            return False
        groups = AliasGroups(self.lifter.capture.graph)
        if groups.find(root) is groups.find(source) and not _copies(root, source):
            return False  # it did so all along
        if any(groups.later_readers(source, root)) and (
            groups.is_written(root, root) or groups.is_written(source, root)
        ):
            return True
        known = groups.members(source)
        return is_handed_out(root) and any(_is_given(n) or _is_output(n) for n in known)

    def _note(
        self,
        region: Region,
        rule: str,
        detail: str,
        real: Operator,
        costs: dict[Operator, int | None],
        emitted: Emitted,
    ) -> None:
        kept = set(leaves(real))
        before = [leaf for leaf in leaves(region.op) if leaf not in kept]
        after = [leaf for leaf in leaves(real) if leaf not in region.leaves]
        self.folds.append(
            Fold(
                where=self.lifter.capture.full(emitted.where),
                rule=rule,
                detail=detail or _detail(before, emitted.where),
                parameters_before=sum(parameters(leaf) for leaf in before),
                parameters_after=sum(parameters(leaf) for leaf in after),
                macs_before=_total([costs[leaf] for leaf in before]),
                macs_after=_total(emitted.macs),
                made_of=tuple(dict.fromkeys(self.path(node_of(leaf)) for leaf in before)),
            )
        )

    def path(self, node: fx.Node) -> str:
        """Return where a node stands in the model: its module path, or its call inside one."""
        return self.lifter.capture.full(place_of(node))

    def _macs(self, leaf: Operator) -> int | None:
        node = node_of(leaf)
        before = self.lifter.shapes.get(source_of(self.lifter, node)) if alive(node) else None
        return multiply_adds(leaf, before, self.lifter.shapes.get(node))


def _largest_kernels(regions: list[Region], *, joins: bool) -> Iterator[Tensor]:
    """Yield the largest kernel of each expression that may fold: its result will be as large."""
    for region in regions:
        every = leaves(region.op)
        kernels = [leaf.weight for leaf in every if isinstance(leaf, Conv)]
        layouts = sum(isinstance(leaf, (Flatten, Input, Resample, Unflatten)) for leaf in every)
        if kernels and (measure(region.op)[1] if joins else len(every) - layouts > 1):
            yield max(kernels, key=Tensor.numel)


def _detail(gone: list[Operator], where: str) -> str:
    """Return the names of the layers that went into a fold, told from the block it stands in."""
    block = where.rpartition(".")[0] + "."
    names = dict.fromkeys(place_of(node_of(leaf)) for leaf in gone)
    return " + ".join(name.removeprefix(block) for name in names)


def only_across_joins(rewrite: Rewrite, shadow: Operator) -> Rewrite:
    """Return the rewrite with every run of layers that only folded within itself as it was before.

    Such runs are plain chains, which a later sweep folds in their places.
    """
    before = {made_of(*run): run for run in _runs(shadow)}
    joined = {  # an identity branch leaves no trace: what took it in is no longer that run
        leaf
        for step in rewrite.steps
        if isinstance(step.window, (Sum, Concat)) or _is_join(step.after)
        for leaf in leaves(step.after)
    }

    def restore(op: Operator) -> Operator:
        if isinstance(op, (Sum, Concat)):
            return type(op)(tuple(restore(part) for part in op.parts))
        parts: list[Operator] = []
        for is_join, group in groupby(chain(op), key=_is_join):
            run = tuple(group)
            if is_join:
                parts.extend(restore(part) for part in run)
            else:
                start = [part for part in run if isinstance(part, Input)]
                same = made_of(*run) in before and joined.isdisjoint(run)
                parts.extend([*start, *before[made_of(*run)]] if same else run)
        return sequence(*parts)

    return replace(rewrite, op=restore(rewrite.op))


def _runs(op: Operator) -> Iterator[tuple[Operator, ...]]:
    """Yield the leaves of every stretch of a chain below `op` that holds no join."""
    for is_join, group in groupby(chain(op), key=_is_join):
        parts = tuple(group)
        if not is_join:
            yield leaves(Sequence(parts))
        for join in parts:
            for branch in join.parts if isinstance(join, (Sum, Concat)) else ():
                yield from _runs(branch)


_VIEWS = (Identity, Flatten, Unflatten, Reshaped, Select)
TWICE = "the result would share its memory with an input or with another result"


def is_handed_out(node: fx.Node) -> bool:
    """Say whether the caller gets a value, or a view of it."""
    pending, seen = [node], {node}
    while pending:
        current = pending.pop()
        if _is_output(current):
            return True
        views = {user for user in current.users if current in may_alias(user)} - seen
        seen |= views
        pending.extend(views)
    return False


def _copies(root: fx.Node, source: fx.Node) -> bool:
    """Say whether a value is made of another with a list of indices on the way: that copies."""
    node = root
    while node is not source and node.all_input_nodes:
        indices = node.args[1] if node.target is operator.getitem else ()
        entries = indices if isinstance(indices, tuple) else (indices,)
        if any(isinstance(entry, (list, fx.Node)) for entry in entries):
            return True
        node = node.all_input_nodes[0]
    return False


def _is_given(node: fx.Node) -> bool:
    return node.op in ("placeholder", "get_attr")


def _is_output(node: fx.Node) -> bool:
    return any(user.op == "output" for user in node.users)


def _is_join(op: Operator) -> bool:
    return isinstance(op, (Sum, Concat))


def _total(values: list[int | None]) -> int | None:
    return None if any(v is None for v in values) else sum(v for v in values if v is not None)
