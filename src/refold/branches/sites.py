"""Where branches can go: each convolution of a network, with the norm that alone reads it.

Found by dataflow, never by names: a norm belongs to a convolution when it is the only reader of
its result. Norms with an activation inside (timm's `BatchNormAct2d`) are taken apart into the norm
and the children that follow it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from refold.errors import GeometryError
from refold.graph import (
    Capture,
    Frame,
    capture_all,
    disguise,
    frame_of,
    leaf_modules,
    lift_module,
    pinned_reason,
    skeleton,
    submodule,
    walk,
)

_TENSORS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


@dataclass(frozen=True)
class Site:
    """One convolution, and its norm where it has one.

    Args:
        conv: path of the convolution.
        norm: path of its norm, or None.
        tail: the norm's own children that run after it, in order.
    """

    conv: str
    norm: str | None = None
    tail: tuple[str, ...] = ()


class _UnfitError(Exception):
    """Why a convolution must stay as it is."""


def find_sites(model: nn.Module) -> tuple[list[Site], dict[str, str]]:
    """Return the convolutions that may become blocks, and why each other one may not.

    Examples:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> find_sites(net)
        ([Site(conv='0', norm='1', tail=())], {})
    """
    found = capture_all(skeleton(model).eval())
    ties = _ties(model)
    sites: dict[str, Site] = {}
    kept: dict[str, str] = {}
    for capture in found.captures:
        for node, module in leaf_modules(capture):
            if isinstance(module, _ConvNd):
                path = capture.full(str(node.target))
                try:
                    sites[path] = _Finder(capture, ties).site(node, path)
                except _UnfitError as reason:
                    kept[path] = str(reason)
    for path, module in model.named_modules():
        if isinstance(module, _ConvNd) and path not in sites and path not in kept:
            kept[path] = disguise(module) or _unreached(path, found.failures)
    order = [path for path, _ in model.named_modules() if path in sites and path not in kept]
    return [sites[path] for path in order], kept


def _unreached(path: str, failures: dict[str, str]) -> str:
    for above, reason in failures.items():
        if path == above or path.startswith(f"{above}.") or not above:
            return f"the code that calls it cannot be traced: {above or 'the model'}: {reason}"
    return "no code that could be traced calls it"


def _ties(model: nn.Module) -> dict[str, str]:
    """Return each module path one of whose parameters has a second name, with that name."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    groups = [group for group in names.values() if len(group) > 1]
    return {
        name.rpartition(".")[0]: next(other for other in group if other != name)
        for group in groups
        for name in group
    }


class _Finder:
    """Judges the convolutions of one capture."""

    def __init__(self, capture: Capture, ties: dict[str, str]) -> None:
        self.capture, self.ties = capture, ties
        self.frames = Counter(frame.path for frame in walk(capture.root))
        self.readers = [
            (cast(str, node.target).rpartition(".")[0], frame_of(node))
            for node in capture.graph.nodes
            if node.op == "get_attr"
        ]

    def site(self, node: fx.Node, path: str) -> Site:
        self._must_be_free(cast(str, node.target), self._module(node), None)
        self._must_lift(node)
        readers = list(node.users)
        if len(readers) != 1:
            return Site(path)
        [reader] = readers
        try:
            if reader.op == "call_module" and isinstance(self._module(reader), _NormBase):
                return self._plain(path, reader)
            if getattr(reader.target, "__name__", "") == "batch_norm":
                return self._fused(path, node, reader)
        except _UnfitError as reason:
            raise _UnfitError(f"its norm cannot move: {reason}") from None
        return Site(path)

    def _plain(self, path: str, reader: fx.Node) -> Site:
        self._must_be_free(cast(str, reader.target), self._module(reader), None)
        self._must_lift(reader)
        return Site(path, self.capture.full(cast(str, reader.target)))

    def _fused(self, path: str, node: fx.Node, reader: fx.Node) -> Site:
        frame = frame_of(reader)
        norm = frame.module
        if not isinstance(norm, _NormBase) or frame.method != "forward" or reader.args[0] != node:
            raise _UnfitError("it is a call of F.batch_norm, not a module")
        self._must_be_free(frame.path, norm, frame)
        if self.frames[frame.path] > 1:
            raise _UnfitError(f"{frame.path} is called more than once")
        held = {*norm._parameters, *norm._buffers}
        if norm.running_mean is None or held != _TENSORS:
            raise _UnfitError(f"{frame.path} has no running statistics, or more than a norm has")
        return Site(path, self.capture.full(frame.path), _tail(frame, reader))

    def _module(self, node: fx.Node) -> nn.Module:
        return submodule(self.capture.module, cast(str, node.target))

    def _must_lift(self, node: fx.Node) -> None:
        try:
            lifted = lift_module(self._module(node), node, None)
        except GeometryError as error:
            raise _UnfitError(str(error)) from None
        if isinstance(lifted, str):
            raise _UnfitError(lifted)

    def _must_be_free(self, target: str, module: nn.Module, own: Frame | None) -> None:
        """Refuse what others see too: hooks, ties, further calls, reads of its weights."""
        reason = pinned_reason(module)
        if reason is not None:
            raise _UnfitError(reason)
        full = self.capture.full(target)
        if full in self.ties:
            raise _UnfitError(f"a parameter of {full} is tied to {self.ties[full]}")
        if own is None and self.capture.calls.get(target, 1) > 1:
            raise _UnfitError(f"{full} is called more than once")
        if any(owner == target and frame is not own for owner, frame in self.readers):
            raise _UnfitError(f"other code reads the tensors of {full}")


def _tail(frame: Frame, norm: fx.Node) -> tuple[str, ...]:
    """Return the children that a norm's own forward calls after the norm, one after the other."""
    calls: dict[Any, tuple[str, Any]] = {}
    for node in frame.nodes:
        if node.op == "call_module":
            calls[node.args[0]] = (cast(str, node.target), node)
        elif node is not norm and node.op != "get_attr":
            raise _UnfitError(f"{frame.path} does more than normalise and call its children")
    for child in frame.children:
        calls[child.args[0] if child.args else None] = (child.path, child.output)
    value: Any = norm
    tail: list[str] = []
    while value in calls:
        path, value = calls.pop(value)
        tail.append(path.removeprefix(f"{frame.path}."))
    if value is not frame.output or calls or set(tail) != set(frame.module._modules):
        raise _UnfitError(f"{frame.path} does more than normalise and call its children")
    return tuple(tail)
