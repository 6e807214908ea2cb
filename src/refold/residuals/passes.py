"""The pass that removes residuals: reserve channels for the shortcut, merge it where it is added.

Source: RMNet, arXiv:2111.00687: reserving, section 3.1, and merging, section 3.2.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from refold.algebra.cost import parameters
from refold.algebra.operator import Operator
from refold.errors import RefusedError
from refold.graph import Editor, Fold, Kept, Lifter, Ranges, WholeWindows, alive, frame_of
from refold.residuals.find import Residual, check_kinds, check_readers, find_residual, is_sum
from refold.residuals.plan import Change, Planner


class ResidualPass:
    """Rewrites every residual of one capture as a chain, inner ones first.

    Args:
        lifter: lifts the capture's nodes; shapes must be known.
        editor: edits its graph.
    """

    def __init__(self, lifter: Lifter, editor: Editor) -> None:
        self.lifter, self.editor = lifter, editor
        self.ranges = Ranges(lifter)
        self.folds: list[Fold] = []
        self.starts: list[str] = []
        self.kept: list[Kept] = []
        self.left: dict[str, str] = {}

    def run(self) -> None:
        """Remove what can be removed; note the reason for every sum that stays."""
        for node in list(self.lifter.capture.graph.nodes):
            if alive(node) and is_sum(self.lifter, node):
                try:
                    self._remove(node)
                except RefusedError as error:
                    self.kept.append(Kept(self.path(node), str(error)))

    def path(self, node: fx.Node) -> str:
        """Return the path of the module in which a node runs; in a file, the node's own name."""
        place = str(node.meta.get("place", frame_of(node).path))
        return self.lifter.capture.full(place)

    def _remove(self, node: fx.Node) -> None:
        start = node.name
        if start in self.left:
            raise RefusedError(self.left[start])
        residual = find_residual(self.lifter, node)
        check_kinds(residual)
        check_readers(self.lifter, residual)
        changes = self._plan(residual)
        before = sum(parameters(op) for op in _operators(residual))
        self._edit(residual, changes)
        after = sum(_size(c.module) for c in (*changes, *(g for c in changes for g in c.gate)))
        detail = f"{len(residual.branch)} steps carry the shortcut along"
        self.folds.append(Fold(self.path(node), "reserve, merge", detail, before, after))
        self.starts.append(start)

    def _plan(self, residual: Residual) -> list[Change]:
        """Return the cheapest plan: with small groups, without, or without any groups."""
        reasons: list[RefusedError] = []
        for grouped, dense in ((True, False), (False, False), (False, True)):
            try:
                return Planner(self.lifter, self.ranges, residual, grouped, dense).plan()
            except RefusedError as error:
                reasons.append(error)
        raise reasons[0]

    def _edit(self, residual: Residual, changes: list[Change]) -> None:
        """Make the edits; `value` is what the chain has come to."""
        source, total = residual.source, residual.total
        value, riding = source, self.ranges.of(source)
        if residual.windows:
            first = residual.branch[0].node
            value = self.editor.insert_module(
                WholeWindows(residual.windows), [value], before=first, name="whole"
            )
        reads = source
        for change in changes:
            if change.kind == "insert":
                assert change.module is not None
                name = "merge" if change.node is total else "reserve"
                value = self.editor.insert_module(
                    change.module, [value], before=change.node, name=name
                )
            elif change.kind == "drop":
                reads = change.node
                continue
            else:
                value = self._change(change, reads, value)
                reads = change.node if alive(change.node) else value
            self._note(value, change.channels, residual, riding)
        self.editor.replace(total, value)
        self.ranges.note(value, self.ranges.of(total))
        self.lifter.shapes[value] = self.lifter.shapes[total]
        steps = (*residual.shortcut, *residual.branch)
        self.editor.discard([total, *(step.node for step in steps)])
        self.editor.sweep()

    def _note(self, value: fx.Node, channels: int, residual: Residual, riding: Any) -> None:
        known = self.lifter.shapes.get(value)
        if known is not None:
            self.lifter.shapes[value] = (known[0], channels, *known[2:])
        self.ranges.note(value, self.ranges.of(value).hull(riding))

    def _change(self, change: Change, reads: fx.Node, value: fx.Node) -> fx.Node:
        """Let a step read what the chain has come to, and change its layer."""
        node, module = change.node, change.module
        if module is not None:
            return self._put(node, module, value)
        if reads is not value:
            for reader in (node, *change.readers):
                self.editor.reread(reader, reads, value)
        for gated in change.gate:
            assert gated.module is not None
            self._put(gated.node, gated.module, gated.node.all_input_nodes[0])
        return node

    def _put(self, node: fx.Node, module: nn.Module, value: fx.Node) -> fx.Node:
        """Give a node's place a new layer: in its own module where that is called only here."""
        calls = self.lifter.capture.calls.get(str(node.target), 1)
        if node.op == "call_module" and calls == 1 and node in self.editor.edits.before:
            if node.args[0] is not value:
                self.editor.reread(node, node.all_input_nodes[0], value)
            self.editor.replace_module(node, module)
            return node
        name = "carry" if node.op != "call_module" else str(node.target).rpartition(".")[2]
        new = self.editor.insert_module(module, [value], before=node, name=f"{name}_wide")
        self.lifter.shapes[new] = self.lifter.shapes[node]
        self.editor.replace(node, new)
        return new


def _operators(residual: Residual) -> list[Operator]:
    steps = (*residual.branch, *residual.shortcut)
    return [op for s in (*steps, *(g for b in residual.branch for g in b.gate)) for op in s.ops]


def _size(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())
