"""Frames: which module call every node of a flat graph came from.

A flat graph has lost the module hierarchy. The frames keep it: one `Frame` for each non-leaf module
that ran during the trace, so that an edited graph can be written back block by block.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, cast

import torch
from torch import fx, nn

Tree = Any  # a nest of tuples, lists, dicts, dataclasses over nodes and plain values


@dataclass(frozen=True, eq=False)
class Reading:
    """One read of an attribute that is no tensor and no module: a flag, a factor, a function.

    Args:
        path: of the module that has it.
        name: of the attribute.
        value: what it was, the class `Absent` where there was none.
        following: the node that was recorded next.
    """

    path: str
    name: str
    value: Any
    following: fx.Node


@dataclass(eq=False)
class Frame:
    """One call of one non-leaf module (or of one of its own methods) during a trace.

    Args:
        path: module path relative to the captured root; `""` is the root.
        module: the skeleton's module.
        args: positional arguments of the call, nodes in place of tensors.
        kwargs: keyword arguments of the call.
        output: what the call returned, nodes in place of tensors.
        nodes: nodes recorded by this call itself (not by a child frame), in order.
        parent: the frame that made the call.
        children: the frames called from here, in order.
        method: the function that ran: `forward`, or a helper such as `forward_features`.
        context: gradient and autocast modes in which the call was made.
        fixed: why its own code must run, if so: no forward can be generated for it, and its calls
            cannot move into the code around it.
        asks: the paths of the stored tensors whose dtype or device its code reads.
        reads: the plain attributes that its code reads.
    """

    path: str
    module: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    output: Tree = None
    nodes: list[fx.Node] = field(default_factory=list[fx.Node])
    parent: Frame | None = None
    children: list[Frame] = field(default_factory=list["Frame"])
    method: str = "forward"
    context: tuple[bool, ...] = ()
    fixed: str | None = None
    asks: set[str] = field(default_factory=set[str])
    reads: list[Reading] = field(default_factory=list["Reading"])
    root: Frame | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.root = None if self.parent is None else self.parent.root or self.parent

    def __repr__(self) -> str:
        return f"Frame({self.path!r}, {type(self.module).__name__}.{self.method})"


def frame_of(node: fx.Node) -> Frame:
    """Return the frame that owns `node`."""
    return cast(Frame, node.meta["frame"])


def ancestors(frame: Frame) -> list[Frame]:
    """Return `frame`, its parent, and so on up to the root."""
    chain = [frame]
    while chain[-1].parent is not None:
        chain.append(chain[-1].parent)
    return chain


def root_of(frame: Frame) -> Frame:
    """Return the frame of the whole recording that `frame` is a part of."""
    return frame.root or frame


def is_inside(frame: Frame, outer: Frame) -> bool:
    """Say whether `frame` is `outer` or lies below it."""
    current: Frame | None = frame
    while current is not None:
        if current is outer:
            return True
        current = current.parent
    return False


def common_ancestor(frames: Iterable[Frame]) -> Frame:
    """Return the deepest frame that contains all of `frames` (at least one)."""
    first, *rest = frames
    return next(c for c in ancestors(first) if all(is_inside(other, c) for other in rest))


def walk(frame: Frame) -> Iterator[Frame]:
    """Yield `frame` and all frames below it, parents first."""
    yield frame
    for child in frame.children:
        yield from walk(child)


def map_tree(fn: Callable[[Any], Any], tree: Tree) -> Tree:
    """Rebuild a nest with `fn` applied to every leaf; types of containers are kept.

    Examples:
        >>> map_tree(lambda v: v + 1, (1, [2, {"a": 3}]))
        (2, [3, {'a': 4}])
    """
    if type(tree) in _ATOMS:
        return fn(tree)
    if isinstance(tree, tuple):
        items = [map_tree(fn, item) for item in cast("tuple[Any, ...]", tree)]
        if hasattr(cast(Any, tree), "_fields"):
            return cast(Any, type(tree))._make(items)  # the class may look at what it is made of
        return cast(Any, type(tree))(items) if is_struct(tree) else tuple(items)
    if isinstance(tree, list):
        return [map_tree(fn, item) for item in cast("list[Any]", tree)]
    if isinstance(tree, dict):
        pairs = [(key, map_tree(fn, item)) for key, item in cast("dict[Any, Any]", tree).items()]
        return _dict_like(cast("dict[Any, Any]", tree), pairs)
    if isinstance(tree, slice):
        return slice(*(map_tree(fn, part) for part in (tree.start, tree.stop, tree.step)))
    if is_dataclass(tree) and not isinstance(tree, type):
        changed = {f.name: map_tree(fn, getattr(tree, f.name)) for f in fields(tree) if f.init}
        return replace(tree, **changed)
    return fn(tree)


def is_struct(tree: Any) -> bool:
    """Say whether a tuple is what a function of torch returns with names for its items.

    Examples:
        >>> is_struct(torch.zeros(2).max(0)), is_struct((1, 2))
        (True, False)
    """
    return type(tree).__module__ == "torch.return_types"


def _dict_like(original: dict[Any, Any], pairs: list[tuple[Any, Any]]) -> Any:
    kind = type(original)
    if kind is dict:
        return dict(pairs)
    try:
        return kind(pairs)
    except TypeError:  # a dict subclass with its own constructor
        return dict(pairs)


def leaves(tree: Tree) -> list[Any]:
    """Return the leaves of a nest, in order.

    Examples:
        >>> leaves((1, [2, {"a": 3}]))
        [1, 2, 3]
    """
    found: list[Any] = []
    _collect((tree,), found)
    return found


def _collect(tree: Tree, found: list[Any]) -> None:
    kind = type(tree)
    plain = tree if kind is tuple or kind is list else tree.values() if kind is dict else None
    inside = _inside(tree) if plain is None else plain
    if inside is None:
        found.append(tree)
        return
    for item in inside:
        if type(item) in _ATOMS:
            found.append(item)
        else:
            _collect(item, found)


def odd_container(tree: Tree) -> type | None:
    """Return the class of a container that nothing says how to make, None where there is none.

    Examples:
        >>> odd_container((1, [2, {"a": 3}])), odd_container([torch.Size([1])])
        (None, <class 'torch.Size'>)
    """
    kind = type(tree)
    if kind in _ATOMS or not isinstance(tree, tuple | list | dict):
        return None
    if isinstance(tree, dict):
        is_odd = not isinstance(_dict_like(tree, [*tree.items()]), kind)
        return kind if is_odd else _odd(cast("dict[Any, Any]", tree).values())
    is_known = kind in (tuple, list) or hasattr(cast(Any, tree), "_fields") or is_struct(tree)
    return _odd(cast("list[Any]", tree)) if is_known else kind


def _odd(items: Iterable[Any]) -> type | None:
    return next((found for found in map(odd_container, items) if found is not None), None)


def _inside(tree: Tree) -> Iterable[Any] | None:
    """Return what one level of a nest holds, None for a leaf."""
    if isinstance(tree, tuple | list):
        return cast("list[Any]", tree)
    if isinstance(tree, dict):
        return cast("dict[Any, Any]", tree).values()
    if isinstance(tree, slice):
        return (tree.start, tree.stop, tree.step)
    if is_dataclass(tree) and not isinstance(tree, type):
        return [getattr(tree, item.name) for item in fields(tree) if item.init]
    return None


_ATOMS = frozenset(
    {fx.Node, torch.Tensor, nn.Parameter, int, float, bool, str, type(None), torch.dtype}
)


def nodes_in(tree: Tree) -> list[fx.Node]:
    """Return the nodes among the leaves of a nest, in order."""
    return [leaf for leaf in leaves(tree) if isinstance(leaf, fx.Node)]


def handed(root: Frame) -> set[fx.Node]:
    """Return the nodes that the calls of a run are given or return, besides those that compute."""
    return {n for frame in walk(root) for n in nodes_in((frame.args, frame.kwargs, frame.output))}


def tree_items(tree: Tree) -> Iterator[tuple[Callable[..., Any], Any, Any]]:
    """Yield for each item of one level of a nest: how to read it, its key, and the item.

    Examples:
        >>> [(key, item) for _, key, item in tree_items({"a": 1})]
        [('a', 1)]
    """
    if isinstance(tree, tuple | list):
        for index, item in enumerate(cast("list[Any]", tree)):
            yield operator.getitem, index, item
    elif isinstance(tree, dict):
        for key, item in cast("dict[Any, Any]", tree).items():
            yield operator.getitem, key, item
    elif is_dataclass(tree) and not isinstance(tree, type):
        for entry in fields(tree):
            if entry.init:
                yield getattr, entry.name, getattr(tree, entry.name)
