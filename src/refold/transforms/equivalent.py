"""A module that is one convolution in all but name, as that convolution, differentiable."""

from __future__ import annotations

from typing import cast

from torch import Tensor, fx, nn

from refold.algebra.operator import Conv, Input, Operator, chain
from refold.errors import NotAffineError, RefusedError
from refold.graph.alias import tainted
from refold.graph.capture import Capture, capture_all
from refold.graph.constants import Constants
from refold.graph.lift import Lifter
from refold.graph.region import Regions
from refold.graph.shapes import find_shapes
from refold.graph.skeleton import skeleton
from refold.rules.engine import Rewrite, simplify
from refold.rules.replay import Replay


def equivalent_conv(module: nn.Module, example: Tensor) -> Conv:
    """Return the one convolution that `module` computes in eval mode, float64 and differentiable.

    Running statistics stand for batch statistics, whatever mode the module is in; it is not
    changed.

    Args:
        module: any affine module of one input.
        example: an input it accepts; only its shape matters.

    Raises:
        NotAffineError: when the module is not affine from its input to its output.
        RefusedError: when it is not one convolution, with the reasons.

    Exact when:
        always: borders included.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8))
        >>> conv = equivalent_conv(net, torch.zeros(1, 3, 8, 8))
        >>> conv.weight.shape, conv.weight.requires_grad
        (torch.Size([8, 3, 3, 3]), True)

    Source: RepVGG, arXiv:2101.03697, section 3.3, whose weight decay needs the gradient.
    """
    found = _captured(skeleton(module).eval(), example)
    lifter = Lifter(found, Constants(found), _shapes(found, example), tainted(found.graph))
    op = _expression(found, lifter)
    replay = Replay()
    rewrite = simplify(replay.stand_in(op), allow_growth=True)
    source, *rest = chain(replay.run(rewrite))
    if len(rest) == 1 and isinstance(rest[0], Conv) and isinstance(source, Input):
        return rest[0]
    raise RefusedError(f"{type(module).__name__} is not one convolution: {_reasons(rewrite)}")


def _captured(module: nn.Module, example: Tensor) -> Capture:
    found = capture_all(module)
    if len(found.captures) == 1 and found.captures[0].path == "":
        return found.captures[0]
    reasons = "; ".join(f"{path or 'itself'}: {reason}" for path, reason in found.failures.items())
    raise NotAffineError(f"{type(module).__name__} cannot be traced: {reasons}")


def _shapes(found: Capture, example: Tensor) -> dict[fx.Node, tuple[int, ...]]:
    return find_shapes(found.module, [found], (example,))[0]


def _expression(found: Capture, lifter: Lifter) -> Operator:
    """Return what the module's output is, up to its input."""
    output = next(node for node in found.graph.nodes if node.op == "output")
    region = Regions(lifter).region(cast(fx.Node, output.args[0]))
    if region is None or len(region.inputs) != 1 or region.inputs[0].op != "placeholder":
        name = type(found.module).__name__
        raise NotAffineError(f"{name} is not affine from its input to its output")
    return region.op


def _reasons(rewrite: Rewrite) -> str:
    reasons = dict.fromkeys(refusal.reason for refusal in rewrite.refusals)
    return "; ".join(reasons) or "no rule makes one of its parts"
