"""Networks that ask for their surroundings: judged in other ones than they were folded in."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch

from helpers.adversaries.base import Table

AROUND = Table()


@contextmanager
def _other_default() -> Generator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _more_threads() -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(before)


World = Callable[[], AbstractContextManager[Any]]
FLAG: World = partial(mock.patch.dict, os.environ, FLAG="1")


def _says(home: Any, name: str, answer: Any) -> World:
    return partial(mock.patch.object, home, name, lambda: answer)


def _set(home: Any, name: str, value: bool) -> World:
    @contextmanager
    def world() -> Generator[None]:
        before = getattr(home, name)
        setattr(home, name, value)
        try:
            yield
        finally:
            setattr(home, name, before)

    return world


cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
ASKS: dict[str, tuple[Callable[[Any], Any], World]] = {
    "gradients": (lambda y: torch.is_grad_enabled(), torch.enable_grad),
    "inference": (lambda y: torch.is_inference_mode_enabled(), torch.inference_mode),
    "inference_of_value": (lambda y: y.is_inference(), torch.inference_mode),
    "grad_fn": (lambda y: y.grad_fn is None, torch.enable_grad),
    "leaf": (lambda y: y.is_leaf, torch.enable_grad),
    "needs_gradient": (lambda y: y.requires_grad, torch.enable_grad),
    "default_dtype": (lambda y: torch.get_default_dtype() == torch.float32, _other_default),
    "threads": (lambda y: torch.get_num_threads() > 1, _more_threads),
    "environment": (lambda y: os.environ.get("FLAG") == "1", FLAG),
    "name_in_environment": (lambda y: "FLAG" in os.environ, FLAG),
    "two_questions_to_it": (lambda y: "FLAG" in os.environ and os.environ["FLAG"] == "1", FLAG),
    "getenv": (lambda y: os.getenv("FLAG", "0") == "1", FLAG),
    "clock": (lambda y: time.perf_counter() > 1e12, _says(time, "perf_counter", 3e12)),
    "tracing": (lambda y: torch.jit.is_tracing(), _says(torch.jit, "is_tracing", True)),
    "scripting": (lambda y: torch.jit.is_scripting(), _says(torch.jit, "is_scripting", True)),
    "compiling": (
        lambda y: torch.compiler.is_compiling(),
        _says(torch.compiler, "is_compiling", 1),
    ),
    "exporting": (
        lambda y: torch.onnx.is_in_onnx_export(),
        _says(torch.onnx, "is_in_onnx_export", True),
    ),
    "gpu": (lambda y: torch.cuda.is_available(), _says(torch.cuda, "is_available", True)),
    "deterministic": (
        lambda y: torch.are_deterministic_algorithms_enabled(),
        _says(torch, "are_deterministic_algorithms_enabled", True),
    ),
    "cudnn_benchmark": (lambda y: torch.backends.cudnn.benchmark, _set(cudnn, "benchmark", True)),
    "cudnn_off": (lambda y: not torch.backends.cudnn.enabled, _set(cudnn, "enabled", False)),
    "tf32": (lambda y: torch.backends.cuda.matmul.allow_tf32, _set(matmul, "allow_tf32", True)),
    "mps": (
        lambda y: torch.backends.mps.is_available(),
        _says(torch.backends.mps, "is_available", True),
    ),
    "gpus": (lambda y: torch.cuda.device_count() > 0, _says(torch.cuda, "device_count", 1)),
    "precision": (
        lambda y: torch.get_float32_matmul_precision() == "high",
        _says(torch, "get_float32_matmul_precision", "high"),
    ),
    "distributed": (
        lambda y: torch.distributed.is_initialized(),
        _says(torch.distributed, "is_initialized", True),
    ),
    "processors": (lambda y: (os.cpu_count() or 1) > 1000, _says(os, "cpu_count", 1001)),
    "seed": (lambda y: torch.initial_seed() == 0, torch.no_grad),
}


def _enter(name: str, ask: Callable[[Any], Any], world: World) -> None:
    def between(s: Any, x: Any) -> Any:
        y = s.c1(x)
        return s.b1(y) if ask(y) else y

    def other_way(s: Any, x: Any) -> Any:
        y = s.c1(x)
        return y if ask(y) else s.b1(y)

    def behind(s: Any, x: Any) -> Any:
        y = s.b1(s.c1(x)) + s.b2(s.c2(x))
        return y if ask(y) else s.head(y)

    for form in (between, other_way, behind):
        form.__name__ = f"{name}_{form.__name__}"
        AROUND.forward(worlds=(world,))(form)


for _name, (_ask, _world) in ASKS.items():
    _enter(_name, _ask, _world)
