"""Methods beside forward: each call gives what the model gave, or raises.

A layer that took in the ones behind it gives their value, which forward alone is known to hand on.
While such a method runs by itself, what these layers give is `Pending`: only the next layer of
their fold may read it.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
import threading
from collections.abc import Generator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from types import CoroutineType, FrameType, FunctionType, GeneratorType, coroutine
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from refold.errors import RefusedError
from refold.graph.copies.held import same_value
from refold.graph.copies.modules import submodule
from refold.graph.trace.frames import leaves

GUARDED = "_refold_guarded"
GENERATED = "<refold generated"
"""How the file names of generated code begin."""


@dataclass(frozen=True)
class Folded:
    """Layers that were folded with each other.

    Args:
        layers: their paths, in order, as the guarded module sees them; empty for those outside it.
        is_chain: whether each only reads the one before: then all in a row give the true value.
        top: the path of the module whose code runs them all; None where that stands higher.
        method: the method of that module which does.
    """

    layers: tuple[str, ...]
    is_chain: bool
    top: str | None
    method: str = "forward"


@dataclass(frozen=True)
class Guard:
    """What the methods of one module must not take apart.

    Args:
        where: the path of the module, for a refusal.
        folds: the layers below it that were folded with others.
        exact: for some methods the plain arguments with which they give what they gave.
    """

    where: str
    folds: tuple[Folded, ...]
    exact: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])

    def after(self, earlier: Guard) -> Guard:
        """Return the guard of a model that was folded twice."""
        exact = {name: self.exact[name] for name in self.exact.keys() & earlier.exact.keys()}
        return Guard(self.where, (*earlier.folds, *self.folds), exact)


def guarded(function: FunctionType, name: str, *, is_static: bool = False) -> FunctionType:
    """Return a method that runs another one under the guard of its module.

    Args:
        function: the other one.
        name: of the method.
        is_static: whether it is not given the module.
    """
    is_compiling = torch.compiler.is_compiling

    def method(self: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
        given = args if is_static else (self, *args)
        if is_compiling() or is_free(self, name, function, given, kwargs):
            return function(*given, **kwargs)
        return run(self, name, function, given, kwargs)

    is_free, run = _is_free, _run
    # The table of globals of the function: TorchScript compiles what it wraps.
    made = FunctionType(method.__code__, function.__globals__, name, None, method.__closure__)
    return cast(FunctionType, functools.wraps(function)(made))


def _is_free(
    module: nn.Module, name: str, function: FunctionType, args: Any, kwargs: dict[str, Any]
) -> bool:
    """Say whether a method may run as it is: forward runs it, or it is called as forward does."""
    guard = cast("Guard | None", module.__dict__.get(GUARDED))
    if guard is None:
        return True
    if _LOCAL.active and any(_holds(one.module, module) for one in _LOCAL.active):
        return True
    if _runs_forward(module, guard.where, sys._getframe(2)):  # pyright: ignore[reportPrivateUsage]
        return True
    expected = guard.exact.get(name)
    return expected is not None and _is_given(function, args, kwargs, expected)


def _is_given(
    function: FunctionType, args: Any, kwargs: dict[str, Any], expected: dict[str, Any]
) -> bool:
    try:
        bound = signature_of(function).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return False
    bound.apply_defaults()
    _, *rest = bound.arguments.items()
    return all(
        same_value(expected[name], value) if name in expected else isinstance(value, Tensor)
        for name, value in rest
    )


signature_of = functools.lru_cache(maxsize=1024)(inspect.signature)
"""Return how a function is called; asked of the same ones all the time."""


def _runs_forward(module: nn.Module, where: str, frame: FrameType | None) -> bool:
    """Say whether the forward of a module, or of what held it when it was folded, has called."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename == checkpoint.__file__:  # runs it again for the backward pass
            return True
        if code.co_name == "forward" and _held(_first_local(frame), module, where):
            return True
        frame = frame.f_back
    return False


def _held(owner: Any, module: nn.Module, where: str) -> bool:
    if owner is module:
        return True
    while where and isinstance(owner, nn.Module):
        with suppress(AttributeError):
            if submodule(owner, where) is module:
                return True
        where = where.partition(".")[2]
    return False


def _first_local(frame: FrameType) -> Any:
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None


def _holds(owner: Any, module: nn.Module) -> bool:
    if owner is module:
        return True
    return isinstance(owner, nn.Module) and any(part is module for part in owner.modules())


def _run(
    module: nn.Module, name: str, function: FunctionType, args: Any, kwargs: dict[str, Any]
) -> Any:
    watch = _Watch(module, cast(Guard, module.__dict__[GUARDED]), name)
    with watch:
        result = function(*args, **kwargs)
    if isinstance(result, GeneratorType | CoroutineType):
        steps = _step_by_step(watch, cast("GeneratorType[Any, Any, Any]", result))
        return steps if isinstance(result, GeneratorType) else _awaited(steps)
    return watch.checked(result)


async def _awaited(steps: Generator[Any, Any, Any]) -> Any:
    @coroutine
    def run() -> Generator[Any, Any, Any]:
        return (yield from steps)

    return await run()


def _step_by_step(watch: _Watch, steps: GeneratorType[Any, Any, Any]) -> Generator[Any, Any, Any]:
    step: Any = steps.send
    given: Any = None
    while True:
        with watch:
            try:
                value = step(given)
            except StopIteration as end:
                return watch.checked(end.value)
        try:
            step, given = steps.send, (yield watch.checked(value))
        except GeneratorExit:
            steps.close()
            raise
        except BaseException as error:  # what the caller throws in
            step, given = steps.throw, error


class Pending(Tensor):
    """What a layer gives that took in the one behind it: only that one may read it."""

    refusal: str
    due: tuple[Folded, int]

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Answer what its form is; refuse all else.

        Raises:
            RefusedError: then.
        """
        owner = getattr(func, "__self__", None)
        name = getattr(owner, "__name__", "") or getattr(func, "__name__", "")
        if name in _FORM:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        found = next(leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Pending))
        for watch in _LOCAL.active:
            watch.refusal = found.refusal
        raise RefusedError(found.refusal)


_FORM = frozenset(
    {"shape", "dtype", "device", "ndim", "layout", "requires_grad", "size", "dim", "numel"}
    | {"is_floating_point", "is_contiguous", "is_meta", "is_cuda", "is_cpu", "stride", "__len__"}
)
_PRODUCTS = re.compile(r"conv|linear|matmul|einsum|^(add|b|badd)?(mm|bmm)$|norm$|^r?mul$|multiply")


class _Watch(TorchFunctionMode):
    """Watches the folded layers below a module while one of its methods runs."""

    def __init__(self, module: nn.Module, guard: Guard, method: str) -> None:
        super().__init__()
        self.module, self.guard = module, guard
        self._thread = threading.get_ident()
        self._name = f"{guard.where}.{method}" if guard.where else method
        self._is_forward = method == "forward"  # then its own is called with other options
        self._weights: dict[int, Tensor] = {}
        self.refusal: str | None = None  # the code may catch the error
        self._gone, self._entered = set[str](), set[int]()
        self._layers: dict[int, list[tuple[Folded, int, str]]] = {}
        for fold in guard.folds:
            for place, path in enumerate(fold.layers):
                if path:
                    self._look_at(fold, place, path)
        self._hooks = ExitStack()

    def __enter__(self) -> _Watch:
        _LOCAL.active.append(self)
        # For all modules: those that stand in one of them would be copied along with it.
        self._hooks.callback(register_module_forward_pre_hook(self._called).remove)
        self._hooks.callback(register_module_forward_hook(self._gave).remove)
        return super().__enter__()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        self._hooks.close()
        _LOCAL.active.remove(self)
        lacks = re.search(r"'(\w+)' object has no attribute '(\w+)'", str(error))
        is_gone = lacks is not None and (lacks[1] == "Identity" or lacks[2] in self._gone)
        if kind is AttributeError and lacks is not None and is_gone:
            raise RefusedError(self._refusal(lacks[2])) from error
        if kind is None and self.refusal is not None:
            raise RefusedError(self.refusal)

    def _look_at(self, fold: Folded, place: int, path: str) -> None:
        try:
            layer = submodule(self.module, path)
        except AttributeError:
            self._gone.add(path.rpartition(".")[2])
            return
        self._weights.update((id(t), t) for t in (*layer.parameters(), *layer.buffers()))
        self._layers.setdefault(id(layer), []).append((fold, place, path))

    def _refusal(self, path: str) -> str:
        return (
            f"{self._name} runs {path} otherwise than the forward for which it was folded; "
            "call the method of the original model"
        )

    def _refuse(self, path: str) -> NoReturn:
        self.refusal = self._refusal(path)
        raise RefusedError(self.refusal)

    def _applies(self, fold: Folded) -> bool:
        """Say whether other code than that which a fold was made for runs."""
        if threading.get_ident() != self._thread:
            return False
        if fold.top is None or (self._is_forward and fold.top == ""):
            return True
        top, frame = submodule(self.module, fold.top), sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
        made = f"{GENERATED} {fold.method} "
        while frame is not None and frame.f_code not in _ENTRIES:
            code, owner = frame.f_code, _first_local(frame)
            if code.co_name == "forward" and _holds(owner, top):
                return False
            if owner is top and code.co_filename.startswith(made):
                return False
            frame = frame.f_back
        return True

    def _called(self, layer: nn.Module, args: tuple[Any, ...]) -> Any:
        for fold, place, path in self._layers.get(id(layer), ()):
            if self._applies(fold):
                args = self._taken(fold, place, path, args)
                self._entered.add(id(layer))
        return args

    def _taken(self, fold: Folded, place: int, path: str, args: tuple[Any, ...]) -> Any:
        """Return what a layer reads in place of a pending value."""
        given = args[0] if args else None
        is_due = isinstance(given, Pending)
        if not fold.is_chain or is_due != (place > 0):
            self._refuse(path)
        if not isinstance(given, Pending):
            return args
        if given.due != (fold, place):
            self._refuse(path)
        with torch._C.DisableTorchFunctionSubclass():
            return given.as_subclass(Tensor), *args[1:]

    def _gave(self, layer: nn.Module, args: Any, result: Any) -> Any:
        self._entered.discard(id(layer))
        for fold, place, path in self._layers.get(id(layer), ()):
            if place + 1 < len(fold.layers) and self._applies(fold):
                with torch._C.DisableTorchFunctionSubclass():
                    result = cast(Pending, result.as_subclass(Pending))
                result.refusal, result.due = self._refusal(path), (fold, place + 1)
        return result

    def checked(self, result: Any) -> Any:
        """Return a result of the method.

        Raises:
            RefusedError: when it holds a value from inside a fold.
        """
        for leaf in leaves(result):
            if isinstance(leaf, Pending):
                raise RefusedError(leaf.refusal)
        return result

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Refuse the method itself to compute with a weight of a fold."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if _PRODUCTS.search(name.strip("_")) and not name.endswith("_") | name.startswith("__set"):
            given = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            own = [leaf for leaf in given if id(leaf) in self._weights]
            if own and len(own) < len(given) and not self._is_called(_nearest_forward()):
                self._refuse("a folded weight")
        return func(*args, **kwargs)

    def _is_called(self, layer: nn.Module | None) -> bool:
        """Say whether a module was called, or is none that was folded; `layer.forward` is no call.

        Args:
            layer: the module whose forward computes; None where a method of another name does.
        """
        if layer is None or id(layer) in self._entered:
            return layer is not None
        return not any(self._applies(fold) for fold, *_ in self._layers.get(id(layer), ()))


def _nearest_forward() -> nn.Module | None:
    frame = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
    while frame is not None and frame.f_code not in _ENTRIES:
        owner = _first_local(frame)
        if isinstance(owner, nn.Module) and frame.f_code.co_name == "forward":
            return owner
        frame = frame.f_back
    return None


_ENTRIES = (_run.__code__, _step_by_step.__code__)


class _Local(threading.local):
    """What watches in a thread."""

    def __init__(self) -> None:
        self.active = list[_Watch]()


_LOCAL = _Local()
