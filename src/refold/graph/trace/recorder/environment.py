"""What code asks about its surroundings: modes, threads, the environment, the clock.

A call from elsewhere may find other answers, so that they are questions as those about sizes are.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType, ModuleType
from typing import Any

import torch
from torch import nn

from refold.graph.copies.watching import watched_functions
from refold.graph.trace.leaves import current_modes
from refold.graph.trace.recorder.notebook import is_python, is_torch

Ask = Callable[[str, Any, tuple[Any, ...] | None], Any]


@contextmanager
def asked_around(modules: Iterable[nn.Module], ask: Ask) -> Generator[None]:
    """Let `ask` answer what the code of a model asks about its surroundings.

    What torch asks itself is answered truly, and so is a mode that the model has set by itself.

    Args:
        modules: those of the model.
        ask: is given what is asked for, the true answer, and what else it may be: None where that
            is anything.

    Examples:
        >>> with asked_around([nn.ReLU()], lambda name, answer, others: name):
        ...     eval("torch.is_grad_enabled()", {"torch": torch})
        'torch.is_grad_enabled()'
    """
    modes = current_modes()
    files = {sys.modules.get(kind.__module__) for kind in _kinds(modules)}
    with _settings_kept(), ExitStack() as stack:
        for asked in _ASKED:
            for name in asked.names:
                function = getattr(asked.home, name, None)
                places = [f for f in files if f and f.__dict__.get(name) is function is not None]
                answer = _Answer(asked, name, ask, modes)
                for place in (asked.home, *places):
                    stack.enter_context(watched_functions(place, [name], answer))
        stack.enter_context(_asked_environment(ask))
        stack.enter_context(_asked_backends(ask))
        yield


@contextmanager
def _settings_kept() -> Generator[None]:
    """Put back what code sets to what it was told before (`before = torch.get_default_dtype()`)."""
    dtype, threads, grad = (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
    )
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def _kinds(modules: Iterable[nn.Module]) -> set[type]:
    return {base for kind in set(map(type, modules)) for base in kind.__mro__}


@dataclass(frozen=True)
class _Asked:
    """Functions of a library that tell about the surroundings.

    Args:
        home: the library.
        title: its name.
        names: of the functions.
        others: what they may answer otherwise: nothing for yes and no, None for anything.
        is_mode: whether a `with` statement of the model's own may decide.
    """

    home: ModuleType
    title: str
    names: tuple[str, ...]
    others: tuple[Any, ...] | None = ()
    is_mode: bool = False


@dataclass(frozen=True)
class _Answer:
    """Answers one function in place of its library."""

    asked: _Asked
    name: str
    ask: Ask
    modes: tuple[bool, ...]

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        answer = function(*args, **kwargs)
        if _asks_itself() or (self.asked.is_mode and current_modes() != self.modes):
            return answer
        others = self.asked.others
        if others is not None:
            others = tuple(other for other in others or (not answer,) if other != answer)
        return self.ask(f"{self.asked.title}.{self.name}()", answer, others)


@contextmanager
def _asked_environment(ask: Ask) -> Generator[None]:
    kind = type(os.environ)
    real = kind.__getitem__

    def value(environ: Any, key: Any) -> str | None:
        try:
            answer = real(environ, key)
        except KeyError:
            answer = None
        if _asks_itself():
            return answer
        others = tuple(other for other in (None, *_VALUES) if other != answer)
        return ask(f"os.environ[{key!r}]", answer, others)

    def item(_: Any, environ: Any, key: Any) -> str:
        found = value(environ, key)
        if found is None:
            raise KeyError(key)
        return found

    def contains(_: Any, environ: Any, key: Any) -> bool:
        return value(environ, key) is not None

    looked_up = watched_functions(kind, ["__getitem__"], item)
    with looked_up, watched_functions(kind, ["__contains__"], contains):
        yield


_VALUES = ("", "0", "1", "none")


def _asks_itself() -> bool:
    """Say whether torch asks, or we do, if by way of Python's own library (`os.getenv`).

    A file asks for itself while it is imported: that happens once.
    """
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame.f_back is not None and (_is_between(frame) or is_python(frame)):
        frame = frame.f_back
    return is_torch(frame) or _is_importing(frame)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and not is_torch(frame):  # as far as the call that is recorded
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
            return True
        frame = frame.f_back
    return False


def _is_between(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__") in (__name__, watched_functions.__module__)


@contextmanager
def _asked_backends(ask: Ask) -> Generator[None]:
    """Answer for the settings of torch's backends, which look like attributes of a module."""

    def setting(function: Callable[..., Any], *args: Any) -> Any:
        answer = function(*args)
        if not isinstance(answer, bool) or _asks_itself():
            return answer
        getter = getattr(args[0], "getter", None)
        told = str(getattr(getter, "__name__", "setting")).removeprefix("_get_")
        name = f"cuda.matmul.{args[1]}" if getter is None else told.replace("_", ".", 1)
        return ask(f"torch.backends.{name}", answer, (not answer,))

    matmul = type(torch.backends.cuda.matmul)
    with (
        watched_functions(torch.backends.ContextProp, ["__get__"], setting),
        watched_functions(matmul, ["__getattr__"], setting),
    ):
        yield


_GRADIENTS = ("is_grad_enabled", "is_inference_mode_enabled")
_AUTOCAST = ("is_autocast_enabled", "is_autocast_cpu_enabled")
_AUTOCAST_TYPES = ("get_autocast_dtype", "get_autocast_cpu_dtype", "get_autocast_gpu_dtype")
_ATTENTION = ("flash_sdp_enabled", "math_sdp_enabled", "mem_efficient_sdp_enabled")
_CLOCKS = ("time", "time_ns", "perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns")
_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_ASKED = (
    _Asked(torch, "torch", (*_GRADIENTS, *_AUTOCAST), is_mode=True),
    _Asked(torch, "torch", ("are_deterministic_algorithms_enabled", "is_anomaly_enabled")),
    _Asked(torch, "torch", ("is_deterministic_algorithms_warn_only_enabled",)),
    _Asked(torch, "torch", ("get_float32_matmul_precision",), ("highest", "high", "medium")),
    _Asked(torch, "torch", ("get_deterministic_debug_mode",), (0, 1, 2)),
    _Asked(torch, "torch", ("get_num_interop_threads",), (1, 2, 8, 64)),
    _Asked(torch, "torch", ("get_default_device",), None),
    _Asked(torch.backends.mkldnn, "torch.backends.mkldnn", ("is_available",)),
    _Asked(torch.backends.mps, "torch.backends.mps", ("is_available", "is_built")),
    _Asked(torch.backends.cuda, "torch.backends.cuda", _ATTENTION),
    _Asked(torch.distributed, "torch.distributed", ("is_available", "is_initialized")),
    _Asked(torch.cuda, "torch.cuda", ("is_initialized",)),
    _Asked(torch.cuda, "torch.cuda", ("device_count",), (0, 1, 8)),
    _Asked(os, "os", ("cpu_count", "getpid"), None),
    _Asked(os.path, "os.path", ("exists", "isfile", "isdir")),
    _Asked(torch.jit, "torch.jit", ("is_tracing", "is_scripting")),
    _Asked(torch.compiler, "torch.compiler", ("is_compiling", "is_dynamo_compiling")),
    _Asked(torch.compiler, "torch.compiler", ("is_exporting",)),
    _Asked(torch.onnx, "torch.onnx", ("is_in_onnx_export",)),
    _Asked(torch.cuda, "torch.cuda", ("is_available",)),
    _Asked(torch, "torch", _AUTOCAST_TYPES, _TYPES, is_mode=True),
    _Asked(torch, "torch", ("get_default_dtype",), _TYPES),
    _Asked(torch, "torch", ("get_num_threads",), (1, 2, 8, 64)),
    _Asked(torch, "torch", ("initial_seed", "seed"), None),
    _Asked(time, "time", _CLOCKS, None),
)
