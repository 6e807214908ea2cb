"""Shapes of the values in captured graphs, found by running them on tensors without storage."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from refold.errors import InputError
from refold.graph.copies.modules import submodule
from refold.graph.copies.skeleton import duplicate
from refold.graph.trace.capture import Capture
from refold.graph.trace.effects import maybe_mutated
from refold.graph.trace.genuine import layer_class
from refold.graph.trace.leaves import is_layer

Shapes = dict[fx.Node, tuple[int, ...]]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def find_shapes(
    model: nn.Module, captures: list[Capture], example_inputs: tuple[Any, ...] | None
) -> list[Shapes]:
    """Return the tensor shapes of each capture's values; empty where no example reaches them.

    Raises:
        InputError: when the model cannot run on the example.
    """
    if all(found.shapes is not None for found in captures):
        return [dict(found.shapes or {}) for found in captures]
    if example_inputs is None:
        return [{} for _ in captures]
    arguments = called_with(model, [c.path for c in captures], example_inputs)
    return [
        dict(found.shapes)
        if found.shapes is not None
        else _propagate(found, arguments[found.path])
        if found.path in arguments
        else {}
        for found in captures
    ]


def called_with(
    model: nn.Module, paths: list[str], example_inputs: tuple[Any, ...]
) -> dict[str, Arguments]:
    """Return what each captured module is called with when the model runs on the example."""
    if paths == [""]:
        return {"": (example_inputs, {})}
    copy = duplicate(model)
    seen: dict[str, Arguments] = {}

    def watch(path: str) -> Callable[..., None]:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.setdefault(path, (args, kwargs))

        return record

    for path in paths:
        submodule(copy, path).register_forward_pre_hook(watch(path), with_kwargs=True)
    try:
        with torch.no_grad():
            copy(*pytree.tree_map_only(Tensor, torch.clone, example_inputs))
    except Exception as error:
        raise InputError(_cannot_run(example_inputs, error)) from error
    return seen


def _cannot_run(example_inputs: tuple[Any, ...], error: Exception) -> str:
    leaves = pytree.tree_leaves(example_inputs)
    shapes = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in leaves]
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"the model cannot run on example_inputs of shape {shapes}: {first}"


def _propagate(found: Capture, arguments: Arguments) -> Shapes:
    args, kwargs = arguments
    names = [node.name for node in found.graph.nodes if node.op == "placeholder"]
    targets = [str(node.target) for node in found.graph.nodes if node.op == "placeholder"]
    given = [*args, *(kwargs[name] for name in targets[len(args) :] if name in kwargs)]
    with _unlogged(), FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        fakes = pytree.tree_map_only(Tensor, mode.from_tensor, given[: len(names)])
        runner = _Runner(found.graph_module(), list(found.graph.nodes), mode)
        runner.is_written = found.changing if not _is_exposed(found) else lambda tensor: "unknown"
        try:
            runner.run(*fakes)
        except Exception as error:
            if not runner.shapes and found.path == "":
                raise InputError(_cannot_run(tuple(given), error)) from error
            runner.failure = error
    if runner.failure is not None and found.path == "":
        _run_for_real(found, given, runner)
    return runner.shapes


@contextmanager
def _unlogged() -> Generator[None]:
    """Keep torch from logging what fails here: it is tried again, then told in one line."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _run_for_real(found: Capture, given: list[Any], runner: _Runner) -> None:
    """Run once with numbers: some layers need them, and a wrong input must be told apart."""
    own = duplicate(found.module)
    real = _Runner(found.graph_module(own), list(found.graph.nodes))
    try:
        with torch.no_grad():
            real.run(*pytree.tree_map_only(Tensor, torch.clone, given))
    except Exception as error:
        raise InputError(_cannot_run(tuple(given), error)) from error
    runner.shapes.update(real.shapes)


class _Runner(fx.Interpreter):
    """An interpreter that notes each value's shape under the node of the original graph.

    In a fake mode, stored tensors and code that may write to them are replaced by fake copies: what
    runs here is the caller's own code on the caller's own tensors else.
    """

    def __init__(
        self, module: fx.GraphModule, originals: list[fx.Node], mode: FakeTensorMode | None = None
    ) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.mode = mode
        self.copies: dict[str, Any] = {}
        self.is_written: Callable[[Tensor], str | None] = lambda tensor: None
        self.shapes: Shapes = {}
        self.failure: Exception | None = None
        self.original = dict(zip(module.graph.nodes, originals, strict=True))

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and note the shape of a tensor result."""
        value: Any = (
            self.map_nodes_to_values(n.args[0], n) if self._keeps_shape(n) else super().run_node(n)
        )
        if isinstance(value, Tensor):
            self.shapes[self.original[n]] = tuple(int(size) for size in value.shape)
        return value

    def fetch_attr(self, target: str) -> Any:
        """Return what a node reads or calls: a fake copy of what might be written to."""
        value: Any = super().fetch_attr(target)
        if self.mode is None:
            return value
        if isinstance(value, Tensor):
            return value if self.is_written(value) is None else self.mode.from_tensor(value)
        if not isinstance(value, nn.Module) or _only_reads(value):
            return value
        if target not in self.copies:
            with FakeCopyMode(self.mode):
                self.copies[target] = duplicate(value)
        return self.copies[target]

    def _keeps_shape(self, n: fx.Node) -> bool:
        """Return whether the node is a norm: it keeps its input's shape and is slow to fake."""
        if n.op == "call_module":
            return layer_class(super().fetch_attr(str(n.target))) in _NORMS
        return n.op == "call_function" and n.target is F.batch_norm


_NORMS = frozenset({nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm})


def _is_exposed(found: Capture) -> bool:
    """Say whether unseen code is given values, among them perhaps stored tensors."""
    return any(maybe_mutated(node) for node in found.graph.nodes)


def _only_reads(module: nn.Module) -> bool:
    """Say whether a call surely leaves a module as it is: layers write to buffers at most."""
    return is_layer(module) and not any(True for _ in module.buffers())
