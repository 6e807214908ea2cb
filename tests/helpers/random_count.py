"""Count the operators that a network really runs, by watching the calls it makes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from refold.graph.layers import ScaleShift

OPERATORS = {
    *(f"{name}{rank}d" for name in ("conv", "conv_transpose", "avg_pool") for rank in (1, 2, 3)),
    *("linear", "matmul", "batch_norm", "instance_norm", "ScaleShift"),
    *("mul", "mul_", "div", "neg", "sub", "__rsub__"),
}


class Calls(TorchFunctionMode):
    """Notes the name of every torch call; a scale and shift layer is one call."""

    def __init__(self) -> None:
        super().__init__()
        self.names = Counter[str]()
        self.inside = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if not self.inside and not (name == "sub" and _is_join(args)):
            self.names[name] += 1
        return func(*args, **(kwargs or {}))

    def enter(self, module: nn.Module, args: Any) -> None:
        self.names["ScaleShift"] += not self.inside
        self.inside += 1

    def leave(self, module: nn.Module, args: Any, out: Any) -> None:
        self.inside -= 1


def _is_join(args: Any) -> bool:
    """Say whether two values of the network meet here, rather than a value and a constant."""
    shapes = {tuple(arg.shape) if isinstance(arg, torch.Tensor) else None for arg in args}
    return len(args) == 2 and len(shapes) == 1


def calls(model: nn.Module, inputs: tuple[Any, ...]) -> Counter[str]:
    """Return how often each torch function is called in one run."""
    watch = Calls()
    layers = [module for module in model.modules() if isinstance(module, ScaleShift)]
    hooks = [module.register_forward_pre_hook(watch.enter) for module in layers]
    hooks += [module.register_forward_hook(watch.leave) for module in layers]
    try:
        with watch, torch.no_grad():
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return watch.names


def count(model: nn.Module, inputs: tuple[Any, ...]) -> int:
    """Return how many convolutions, linear layers, norms, scales and pools one run takes."""
    return sum(number for name, number in calls(model, inputs).items() if name in OPERATORS)
