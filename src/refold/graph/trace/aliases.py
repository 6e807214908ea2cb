"""Values that an in-place operation changes behind the back of another reader.

A fold moves a value from one place to another; that is only right for values that nobody changes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from torch import fx

from refold.graph.calls import place_of
from refold.graph.trace.effects import is_view_of, may_alias, maybe_mutated, mutated, reads_values
from refold.graph.trace.writes import same_storage


def tainted(graph: fx.Graph) -> dict[fx.Node, str]:
    """Return the values that must take no part in a fold, each with the reason.

    A value is tainted when an in-place operation changes it, or something that may share its
    memory, while another reader sees it, or while it is an input or a parameter of the model. An
    in-place operation that is the only reader of a fresh value taints nothing. Code that the trace
    could not see may change its arguments, so these are tainted when they have another reader.

    Examples:
        >>> def forward(x):
        ...     y = x.exp()
        ...     return y.relu_() + y.neg()
        >>> tainted(fx.symbolic_trace(forward).graph).popitem()
        (relu_, 'relu_ changes exp in place while neg reads it')
    """
    groups = AliasGroups(graph)
    found: dict[fx.Node, str] = {}
    for node in graph.nodes:
        for changed, certain in _writes(node):
            reason = groups.conflict(node, changed, certain=certain)
            if reason is not None:
                for member in groups.members(changed):
                    found.setdefault(member, reason)
    return found


def _writes(node: fx.Node) -> list[tuple[fx.Node, bool]]:
    sure = mutated(node)
    return [(n, True) for n in sure] + [(n, False) for n in maybe_mutated(node) if n not in sure]


def effects(graph: fx.Graph) -> tuple[bool, bool]:
    """Say whether running a graph may change its inputs, and whether it may return them.

    Examples:
        >>> effects(fx.symbolic_trace(lambda x: x.add_(1)).graph)
        (True, True)
    """
    groups = AliasGroups(graph)
    inputs = {groups.find(node) for node in graph.nodes if node.op == "placeholder"}
    written = [changed for node in graph.nodes for changed, _ in _writes(node)]
    output = next(node for node in graph.nodes if node.op == "output")
    changes = any(groups.find(value) in inputs for value in written)
    return changes, any(groups.find(value) in inputs for value in output.all_input_nodes)


class AliasGroups:
    """Nodes of a graph grouped by memory they may share; a group is looked up when it is asked for.

    Args:
        graph: the graph; nothing may change it while its groups are asked for.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._groups: dict[fx.Node, list[fx.Node]] = {}
        self._shared = functools.cache(may_alias)

    def find(self, node: fx.Node) -> fx.Node:
        """Return the node that stands for the group of `node`: its first."""
        return self.members(node)[0]

    def members(self, node: fx.Node) -> list[fx.Node]:
        """Return all nodes that may share memory with `node`, itself included, in graph order."""
        known = self._groups.get(node)
        if known is None:
            known = sorted(self._reached(node))
            self._groups.update(dict.fromkeys(known, known))
        return known

    def _reached(self, node: fx.Node) -> set[fx.Node]:
        found, pending = {node}, [node]
        while pending:
            value = pending.pop()
            near = [*self._shared(value)]
            near += [user for user in value.users if value in self._shared(user)]
            near += self._tied.get(value, ()) if value.op == "get_attr" else ()
            new = {one for one in near if one not in found}
            found |= new
            pending += new
        return found

    @functools.cached_property
    def _tied(self) -> dict[fx.Node, list[fx.Node]]:
        found: dict[fx.Node, list[fx.Node]] = {}
        for first, second in same_storage(self._graph):
            found.setdefault(first, []).append(second)
            found.setdefault(second, []).append(first)
        return found

    def is_written(
        self, value: fx.Node, after: fx.Node | None = None, before: fx.Node | None = None
    ) -> bool:
        """Say whether a call changes the memory that holds a value, or may.

        Args:
            value: the value.
            after: count the calls behind this one only.
            before: count the calls in front of this one only.
        """
        members = set(self.members(value))
        users = {user for member in members for user in member.users}
        users = {user for user in users if after is None or after < user}
        users = {user for user in users if before is None or user < before}
        return any(changed in members for user in users for changed, _ in _writes(user))

    def later_readers(self, value: fx.Node, after: fx.Node) -> Iterator[fx.Node]:
        """Yield what holds the memory of a value for the caller, or reads it behind a call."""
        for member in self.members(value):
            if member.op in ("placeholder", "get_attr"):
                yield member
            for user in member.users:
                if after < user and reads_values(user) and not is_view_of(user, member):
                    yield user

    def conflict(self, writer: fx.Node, changed: fx.Node, *, certain: bool = True) -> str | None:
        """Return why the write of `writer` into `changed` is seen elsewhere, or None."""
        verb = "changes" if certain else "may change"
        members = self.members(changed)
        for member in members if certain else ():
            if member.op == "placeholder":
                return f"{_said(writer)} changes the input {place_of(member)} in place"
            if member.op == "get_attr":
                return f"{_said(writer)} changes the stored tensor {member.target} in place"
        renamed = self._through(writer)
        for member in members:
            if member in renamed:
                continue  # the changed value under its new name
            for reader in member.users:
                if reader is not writer and self._sees(reader, member, changed):
                    what = f"{_said(writer)} {verb} {_said(changed)} in place"
                    return f"{what} while {_said(reader)} reads it"
        return None

    def _sees(self, reader: fx.Node, member: fx.Node, changed: fx.Node) -> bool:
        """Say whether a reader uses the numbers of a value that a write elsewhere changes."""
        if not reads_values(reader) or is_view_of(reader, member):
            return False  # the readers of a view are judged themselves
        earlier_write = member in mutated(reader) and changed in self._through(reader)
        return not earlier_write

    def _through(self, writer: fx.Node) -> set[fx.Node]:
        """Return the names of the memory that `writer` and what reads its result give it."""
        group = self.find(writer)
        seen: set[fx.Node] = {writer}
        stack = [writer]
        while stack:
            node = stack.pop()
            for user in node.users:
                if user not in seen and self.find(user) is group and node in self._shared(user):
                    seen.add(user)
                    stack.append(user)
        return seen


def _said(node: fx.Node) -> str:
    """Return where a call stands: the code that makes it where it is known, or its module path."""
    line = node.meta.get("line")
    home = getattr(node.meta.get("frame"), "path", "") or "the model"
    return f"{home} ({line})" if line else place_of(node)
