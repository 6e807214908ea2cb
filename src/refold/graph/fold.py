"""The fold pass: find regions, simplify them, and write the result into the graph."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from refold.algebra.cost import measure, parameters
from refold.algebra.operator import Operator, leaves
from refold.errors import RefusedError
from refold.graph.emit import Emitter, Provenance
from refold.graph.lift import Lifter
from refold.graph.record import Fold, Kept
from refold.graph.region import Region, Regions
from refold.graph.sizes import multiply_adds
from refold.graph.surgery import Editor
from refold.rules.engine import Rewrite, simplify
from refold.rules.replay import Replay


@dataclass
class FoldPass:
    """Folds every region of one capture until nothing changes.

    Args:
        lifter: lifts the capture's nodes.
        editor: edits its graph.
        allow_growth: also merge what then needs more multiply-adds.
    """

    lifter: Lifter
    editor: Editor
    allow_growth: bool = False

    def __post_init__(self) -> None:
        self.folds: list[Fold] = []
        self.refused: dict[fx.Node, Kept] = {}
        self._settled: set[tuple[tuple[fx.Node, ...], bool]] = set()

    def run(self) -> list[Fold]:
        """Fold to a fixed point, plain chains first so that they keep their places."""
        while self._sweep(chains=True) or self._sweep(chains=False):
            pass
        return self.folds

    def _sweep(self, *, chains: bool) -> bool:
        changed = False
        regions = Regions(self.lifter, chains=chains)
        for root in regions.roots():
            if root._erased:  # type: ignore[reportPrivateUsage]
                continue
            region = regions.region(root)
            if region is not None and (region.nodes, chains) not in self._settled:
                if self.fold(region, self.allow_growth and not chains):
                    changed = True
                    regions = Regions(self.lifter, chains=chains)
                else:
                    self._settled.add((region.nodes, chains))
        return changed

    def fold(self, region: Region, allow_growth: bool) -> bool:
        """Simplify one region and write it back where that gains something."""
        if len(leaves(region.op)) < 2 and measure(region.op)[1] == 0:
            return False
        replay = Replay()
        shadow = replay.stand_in(region.op)
        rewrite = simplify(shadow, allow_growth=allow_growth)
        if measure(rewrite.op)[:2] >= measure(shadow)[:2]:
            return False
        real = replay.run(rewrite)
        return self.write(region, rewrite, real, provenance(region, rewrite, replay))

    def write(self, region: Region, rewrite: Rewrite, real: Operator, origin: Provenance) -> bool:
        """Put a simplified region into the graph; keep the old one where a value does not fit."""
        try:
            emitted = Emitter(self.lifter, self.editor, region, origin).run(real)
        except RefusedError as error:
            for node in region.nodes:
                self.refused[node] = Kept(self.path(node), str(error))
            return False
        before = [leaf for leaf in leaves(region.op) if id(leaf) not in {id(x) for x in leaves(real)}]
        after = [leaf for leaf in leaves(real) if id(leaf) not in region.origins]
        self.folds.append(
            Fold(
                where=self.lifter.capture.full(emitted.where),
                rule=", ".join(dict.fromkeys(step.rule.name for step in rewrite.steps)),
                detail=self._detail(region, before),
                parameters_before=sum(parameters(leaf) for leaf in before),
                parameters_after=sum(parameters(leaf) for leaf in after),
                macs_before=_total([self._macs(leaf, region) for leaf in before]),
                macs_after=_total(emitted.macs),
            )
        )
        return True

    def path(self, node: fx.Node) -> str:
        """Return where a node stands in the model: its module path, or its call inside one."""
        return self.lifter.capture.full(node_path(node))

    def _detail(self, region: Region, gone: list[Operator]) -> str:
        names = dict.fromkeys(node_path(region.origins[id(leaf)]) for leaf in gone)
        return " + ".join(names)

    def _macs(self, leaf: Operator, region: Region) -> int | None:
        node = region.origins[id(leaf)]
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        before = self.lifter.shapes.get(source) if source is not None else None
        return multiply_adds(leaf, before, self.lifter.shapes.get(node))


def provenance(region: Region, rewrite: Rewrite, replay: Replay) -> Provenance:
    """Return the nodes that went into each new leaf of a rewrite."""
    origin: dict[int, frozenset[fx.Node]] = {}
    for leaf in leaves(replay.shadow_of(region.op)):
        origin[id(leaf)] = frozenset({region.origins[id(replay.real(leaf))]})
    for step in rewrite.steps:
        made = leaves(step.after)
        kept = frozenset().union(*(origin[id(leaf)] for leaf in made if id(leaf) in origin))
        used = frozenset().union(*(origin.get(id(leaf), frozenset()) for leaf in leaves(step.window)))
        for leaf in made:
            origin.setdefault(id(leaf), used - kept or used)
    return {id(replay.real(leaf)): origin[id(leaf)] for leaf in leaves(rewrite.op)}


def node_path(node: fx.Node) -> str:
    """Return a node's module path in its capture; a call inside a module reads `block.add`."""
    if node.op == "call_module":
        return str(node.target)
    frame = node.meta.get("frame")
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.name)
    prefix = getattr(frame, "path", "")
    return f"{prefix}.{name}" if prefix else str(name)


def _total(values: list[int | None]) -> int | None:
    return None if any(v is None for v in values) else sum(v for v in values if v is not None)


