"""Scales that only stayed for the sake of their shift: the layer behind takes them in.

A shift cannot pass a padding with zeros, so the rules leave `s x + t` in front of such a layer. Yet
it is `s (x + t / s)`, and the layer takes in s: an addition stays instead of a product and a sum.
That needs every s to differ from zero; a rule decides nothing on numbers, a file is its numbers.
"""

from __future__ import annotations

import torch
from torch import fx, nn

from refold.algebra.operator import Affine, Conv, Sequence
from refold.graph import (
    Capture,
    Fold,
    Piece,
    ScaleShift,
    lift_module,
    like_of,
    lower,
    place_of,
    submodule,
)
from refold.rules.norm import fold_affine_ahead_of_conv


def hand_over_scales(capture: Capture) -> list[Fold]:
    """Give scales to the layers behind them; return what was done."""
    found: list[Fold] = []
    for call in capture.graph.nodes:
        module = _module(capture, call)
        if isinstance(module, ScaleShift) and (layers := _layers(capture, call, module)):
            if not _hand_over(capture, call, module, layers):
                continue
            readers = " + ".join(place_of(reader) for reader in layers)
            assert module.weight is not None
            detail = f"the scale of {place_of(call)} + {readers}"
            found.append(Fold(readers, "scale into readers", detail, module.weight.numel(), 0))
    return found


def _layers(capture: Capture, call: fx.Node, module: ScaleShift) -> dict[fx.Node, nn.Module]:
    """Return what takes in a scale, for each reader; nothing where one cannot."""
    scale, shift = module.weight, module.bias
    if scale is None or shift is None or not bool((scale != 0).all()):
        return {}
    made: dict[fx.Node, nn.Module] = {}
    for reader in call.users:
        layer = _module(capture, reader)
        lifted = None if layer is None else lift_module(layer, call, capture.shapes.get(call))
        op = lifted.ops[0] if isinstance(lifted, Piece) else None
        if layer is None or not isinstance(op, Conv) or len(op.axes) != module.rank:
            return {}
        taken = fold_affine_ahead_of_conv(Sequence((Affine(scale.double()), op)))
        if not isinstance(taken, Conv):
            return {}
        made[reader] = lower(taken, like_of(list(layer.parameters()), module.rank))
    return made


def _hand_over(
    capture: Capture, call: fx.Node, module: ScaleShift, layers: dict[fx.Node, nn.Module]
) -> bool:
    assert module.weight is not None
    assert module.bias is not None
    shift = (module.bias.double() / module.weight.double()).to(module.bias.dtype)
    if not bool(torch.isfinite(shift).all()):
        return False
    rest = ScaleShift(None, shift, module.rank).requires_grad_(False)
    for node, layer in ((call, rest), *layers.items()):
        capture.module.add_module(str(node.target), layer.eval())
    return True


def _module(capture: Capture, call: fx.Node) -> nn.Module | None:
    return submodule(capture.module, str(call.target)) if call.op == "call_module" else None
