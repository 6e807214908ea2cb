"""Elementwise functions of several values as one function of all of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from refold.graph.activations import activation
from refold.graph.carry import ChannelClamp, ChannelSlope
from refold.graph.lift_context import Context
from refold.graph.paths import submodule
from refold.graph.surgery import Editor


@dataclass(frozen=True, eq=False)
class Function:
    """A call of an elementwise function.

    Args:
        key: equal for calls that do the same to every channel, or differ in slopes alone.
        call: the layer, or the function of torch.
        args: further arguments.
        kwargs: further arguments by name.
    """

    key: object
    call: nn.Module | Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, context: Context, node: fx.Node) -> Function | None:
        """Return the function that a node calls, None for one that has no twin elsewhere."""
        if activation(context, node) is None:
            return None
        if node.op == "call_module":
            layer = submodule(context.capture.module, str(node.target))
            if isinstance(layer, (ChannelClamp, ChannelSlope)):
                return None
            same = nn.PReLU if isinstance(layer, nn.PReLU) else (type(layer), layer.extra_repr())
            return cls(same, layer)
        args, kwargs = node.args[1:], tuple(sorted(node.kwargs.items()))
        call: Any = _named(str(node.target)) if node.op == "call_method" else node.target
        if call is None or len(node.all_input_nodes) > 1:
            return None
        return cls((call, repr(args), repr(kwargs)), call, args, kwargs)

    @classmethod
    def joint(
        cls, context: Context, nodes: Sequence[fx.Node], widths: Sequence[int]
    ) -> Function | None:
        """Return the one function of all these values side by side, None where there is none.

        Args:
            context: knows the calls.
            nodes: they call functions of one key.
            widths: channels of the value that each reads.
        """
        found = [made for node in nodes if (made := cls.of(context, node)) is not None]
        if len(found) < len(nodes) or len({made.key for made in found}) > 1:
            return None
        first, layers = found[0], [made.call for made in found]
        slopes = [layer.weight for layer in layers if isinstance(layer, nn.PReLU)]
        if not slopes:
            return first
        pairs = zip(slopes, widths, strict=True)
        weight = torch.cat([slope.detach().expand(width) for slope, width in pairs])
        layer = nn.PReLU(len(weight), device=weight.device, dtype=weight.dtype)
        layer.weight = nn.Parameter(weight, any(slope.requires_grad for slope in slopes))
        return cls(first.key, layer)

    def write(self, editor: Editor, value: fx.Node, beside: Sequence[fx.Node]) -> fx.Node:
        """Call it on a value, in front of these nodes and in the frame that holds them all."""
        before = min(beside)
        if isinstance(self.call, nn.Module):
            name, layer = type(self.call).__name__.lower(), copy.deepcopy(self.call)
            return editor.insert_module(layer, [value], before=before, name=name, beside=beside)
        args, kwargs = (value, *self.args), dict(self.kwargs)
        return editor.insert_function(self.call, args, kwargs, before=before, beside=beside)


def _named(method: str) -> Callable[..., Any] | None:
    """Return the function that does what a method of tensors does."""
    return getattr(torch, method, None) or getattr(F, method, None)
