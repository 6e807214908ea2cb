"""Plain attributes that a fold takes for granted: to set one to another value raises.

A forward that is written anew holds what the code made of them, and a layer that took in the one
behind it stands for both: `self.use_norm = False` would go unseen.
"""

from __future__ import annotations

import ast
import functools
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from torch import fx, nn

from refold.errors import RefusedError
from refold.graph.copies.held import same_value
from refold.graph.copies.modules import paths_around
from refold.graph.copies.watching import Absent
from refold.graph.surgery.edits import Edits
from refold.graph.trace.code.names import functions_of
from refold.graph.trace.code.reads import uses_of
from refold.graph.trace.code.source import names_that_decide, parsed, parts_decided
from refold.graph.trace.frames import Frame, Reading, ancestors, common_ancestor, walk
from refold.graph.trace.other_runs.more_calls import taken_apart

FIXED = "_refold_made_for"


def fixed_readings(
    edits: Edits, written: Iterable[Frame], steps: Iterable[Iterable[fx.Node]]
) -> list[tuple[Frame, Reading]]:
    """Return what code has read of attributes that an edited graph takes for granted.

    Args:
        edits: the edits.
        written: the frames whose code is written down as it ran.
        steps: the original nodes of each step: what code reads between them decides about it.
    """
    taken = [(frame, reading) for frame in written for reading in frame.reads]
    every = [*map(list, steps)]
    return [*taken, *_between(edits, every), *_elsewhere(edits, every), *_within(edits, every)]


def _between(edits: Edits, steps: Iterable[Iterable[fx.Node]]) -> Iterator[tuple[Frame, Reading]]:
    reading = {frame for frame in walk(edits.capture.root) if frame.reads}
    if not reading:
        return
    order = {node: place for place, node in enumerate(edits.before)}
    for step in steps:
        nodes = [node for node in step if node in order]
        if len(nodes) < 2:
            continue
        homes = {edits.home[node] for node in nodes}
        top = common_ancestor(homes)
        frames = {frame for home in homes for frame in ancestors(home) if frame in reading}
        frames -= {*ancestors(top)[1:]}
        first, last = min(map(order.__getitem__, nodes)), max(map(order.__getitem__, nodes))
        for frame in frames:
            for one in frame.reads:
                if first <= order.get(one.following, -1) <= last:
                    yield frame, one


def _elsewhere(edits: Edits, steps: Iterable[Iterable[fx.Node]]) -> Iterator[tuple[Frame, Reading]]:
    """Yield what decides whether code uses a folded layer once more: it uses it in two places."""
    kept = dict[Frame, list[str]]()
    for node in edits.before:
        if node.op in ("call_module", "get_attr"):
            kept.setdefault(edits.home[node], []).append(str(node.target))
    more = dict[str, list[tuple[Frame, Reading]]]()
    for frame in walk(edits.capture.root):
        unused = _unused(frame, kept.get(frame, [])) if frame.reads else ()
        code, above = _code(frame), f"{frame.path}." if frame.path else ""
        for name in unused:
            names = names_that_decide(code, frozenset({name}))
            if deciding := [(frame, one) for one in frame.reads if one.name in names]:
                more.setdefault(above + name, []).extend(deciding)
    for step in steps if more else ():
        nodes = [n for n in step if n in edits.before]
        paths = {str(n.target) for n in nodes if n.op in ("call_module", "get_attr")}
        if len(nodes) > 1:
            yield from chain.from_iterable(map(more.__getitem__, taken_apart(more, paths)))


def _within(edits: Edits, steps: Iterable[Iterable[fx.Node]]) -> Iterator[tuple[Frame, Reading]]:
    """Yield what decides whether code uses a part of a child once more, of which a fold took some.

    The child holds the whole fold (`y = self.block(x)`, then `self.block.norm(y)`).
    """
    named = dict[str, list[tuple[frozenset[str], list[tuple[Frame, Reading]]]]]()
    for frame in walk(edits.capture.root):
        for parts, names in parts_decided(_code(frame)) if frame.reads else ():
            if deciding := [(frame, one) for one in frame.reads if one.name in names]:
                named.setdefault(frame.path, []).append((parts, deciding))
    for step in steps if named else ():
        nodes = [n for n in step if n in edits.before]
        paths = {str(n.target) for n in nodes if n.op == "call_module"}
        for above in ("", *paths_around(min(paths))) if len(nodes) > 1 and paths else ():
            for parts, deciding in named.get(above, ()):
                if not parts.isdisjoint(_below_children(above, paths)):
                    yield from deciding


def _below_children(above: str, paths: Iterable[str]) -> Iterator[str]:
    """Yield the names within the children of a module, on the way to these layers."""
    prefix = f"{above}." if above else ""
    for path in paths:
        if path.startswith(prefix):
            yield from path.removeprefix(prefix).split(".")[1:]


def _unused(frame: Frame, kept: Iterable[str]) -> set[str]:
    """Return the children that the code of a frame uses in more places than it has in this run.

    Args:
        frame: the frame.
        kept: the paths of the layers and tensors that it has used.
    """
    uses = Counter(use.name for use in uses_of(_code(frame)))
    prefix = f"{frame.path}." if frame.path else ""
    paths = (*kept, *(child.path for child in frame.children if child.path != frame.path))
    used = Counter(path.removeprefix(prefix).partition(".")[0] for path in paths)
    return {name for name, count in used.items() if uses[name] > count}


def _code(frame: Frame) -> Any:
    """Return the function that a frame ran: one for all modules of a class."""
    method = getattr(frame.module, frame.method)
    return getattr(method, "__func__", method)


def check_assignment(module: nn.Module, name: str, value: Any) -> None:
    """Refuse to set an attribute to another value than the one that a fold was made for.

    Raises:
        RefusedError: then.
    """
    where, values = module.__dict__.get(FIXED, ("", {}))
    if name not in values or _is_same(values[name], value):
        return
    was = values[name]
    if _recomputes(type(module), name) or (
        was is Absent and _is_default(type(module), name, value)
    ):
        return
    before, now = ("missing" if one is Absent else _told(one) for one in (was, value))
    raise RefusedError(
        f"{where + '.' if where else ''}{name} was {before} when this model was folded, and its "
        f"forward was made for that; got {now}: set it on the original model, then fold"
    )


def _is_same(old: Any, new: Any) -> bool:
    if isinstance(old, float) and isinstance(new, float):
        return old == new
    return same_value(old, new) or (type(old) is type(new) and _is_equal(old, new))


def _is_equal(old: Any, new: Any) -> bool:
    try:
        return bool(old == new)
    except Exception:  # any code may raise anything
        return False


def _told(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else type(value).__name__


@functools.lru_cache(maxsize=1024)
def _recomputes(kind: type, name: str) -> bool:
    """Say whether an attribute only asks for values to be computed again in the backward pass."""
    if "checkpoint" in name:
        return True
    places = list(_places(kind, name))
    return bool(places) and all(
        test is not None and any("checkpoint" in ast.unparse(call.func) for call in _calls(test))
        for test in places
    )


def _places(kind: type, name: str) -> Iterator[ast.If | None]:
    """Yield, for every read of an attribute, the branch that it decides about, if it does."""
    for function in functions_of(kind):
        tree = parsed(function)
        tests = {
            id(part): branch
            for branch in ast.walk(tree)
            if isinstance(branch, ast.If)
            for part in ast.walk(branch.test)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr == name:
                yield tests.get(id(node))


def _calls(branch: ast.If) -> Iterator[ast.Call]:
    return (node for part in branch.body for node in ast.walk(part) if isinstance(node, ast.Call))


def _is_default(kind: type, name: str, value: Any) -> bool:
    """Say whether code that finds no such attribute takes just this value for it."""
    defaults = [
        call.args[2]
        for function in functions_of(kind)
        for call in ast.walk(parsed(function))
        if isinstance(call, ast.Call)
        and ast.unparse(call.func) == "getattr"
        and len(call.args) == 3
        and ast.unparse(call.args[1]) == repr(name)
    ]
    values = [one.value for one in defaults if isinstance(one, ast.Constant)]
    return bool(values) and len(values) == len(defaults) and all(_is_same(v, value) for v in values)
