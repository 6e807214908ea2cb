"""A module as the operators it computes: as one convolution, differentiable, where it is one."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, fx, nn

from refold.algebra.operator import Conv, Operator, chain, sequence
from refold.engine.ledger import Rewrite
from refold.engine.replay import Replay
from refold.engine.row_slices import fold_rows_in_slices
from refold.engine.simplify import simplify
from refold.errors import NotAffineError, RefusedError
from refold.graph import (
    Capture,
    Lifter,
    Regions,
    Shapes,
    capture_all,
    skeleton,
    undisturbed,
)


def equivalent_conv(module: nn.Module, example: Tensor) -> Conv:
    """Return the one convolution that `module` computes in eval mode, float64 and differentiable.

    Running statistics stand for batch statistics, whatever mode the module is in; it is not
    changed. A kernel that the forward computes from parameters counts as a constant: no gradient
    reaches those parameters.

    Args:
        module: any affine module of one input.
        example: an input it accepts; only its shape matters.

    Raises:
        NotAffineError: when the module is not affine from its input to its output.
        RefusedError: when it is not one convolution, with the reasons.

    Exact when:
        always: borders included.

    Examples:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8))
        >>> conv = equivalent_conv(net, torch.zeros(1, 3, 8, 8))
        >>> conv.weight.shape, conv.weight.requires_grad
        (torch.Size([8, 3, 3, 3]), True)

    Source: RepVGG, arXiv:2101.03697, section 3.3, whose weight decay needs the gradient.
    """
    found = _captured(skeleton(module).eval() if _trains(module) else module, example)
    entry = {node: tuple(example.shape) for node in found.graph.nodes if node.op == "placeholder"}
    rewrite = _simplified(found, entry)
    if rewrite is None or _as_conv(rewrite[0].op) is None:  # now with the shapes of all values
        rewrite = _simplified(found)
    name = type(module).__name__
    if rewrite is None:
        raise NotAffineError(f"{name} is not affine from its input to its output")
    conv = _as_conv(rewrite[1].run(rewrite[0]))
    if conv is None:
        raise RefusedError(f"{name} is not one convolution: {_reasons(rewrite[0])}")
    return conv


def equivalent_operator(module: nn.Module, example: Tensor) -> Operator:
    """Return what `module` computes in eval mode as few operators in a row, its input left out.

    Nothing is merged that would then need more multiply-adds. Weights of large linear layers on
    flattened maps come in their own precision, all others in float64; no gradient flows.

    Args:
        module: any affine module of one input, in eval mode.
        example: an input it accepts; only its shape matters.

    Raises:
        NotAffineError: when the module is not affine from its input to its output.

    Exact when:
        always, for inputs of the example's size.

    Examples:
        >>> import torch
        >>> pool = nn.Sequential(nn.AvgPool2d(2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 5))
        >>> op = equivalent_operator(pool.eval(), torch.zeros(1, 3, 4, 4))
        >>> [type(part).__name__ for part in chain(op)]
        ['AvgPool', 'Flatten', 'Conv']

    Source: RepMLP, arXiv:2105.01883, section 3.3, is the first to need it.
    """
    with undisturbed(), torch.no_grad():
        simple = _simplified(_captured(module, example), allow_growth=False)
        if simple is None:
            raise NotAffineError(f"{type(module).__name__} is not affine from its input on")
        rewrite, replay, op = simple
        real = fold_rows_in_slices(rewrite, op) or replay.run(rewrite)
    return sequence(*chain(real)[1:])


def equivalent_linear(module: nn.Module, example: Tensor) -> Conv:
    """Return the one layer with weights that `module` computes in eval mode.

    What else it computes are changes of layout and pools; precision as in `equivalent_operator`.

    Args:
        module: any affine module of one input, in eval mode.
        example: an input it accepts; only its shape matters.

    Raises:
        NotAffineError: when the module is not affine from its input to its output.
        RefusedError: when more than one layer remains, or none.

    Exact when:
        always, for inputs of the example's size.

    Examples:
        >>> import torch
        >>> pool = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 5)).eval()
        >>> equivalent_linear(pool, torch.zeros(1, 3, 2, 2)).weight.shape
        torch.Size([5, 12])

    Source: RepMLP, arXiv:2105.01883, section 3.3.
    """
    found = [leaf for leaf in chain(equivalent_operator(module, example)) if isinstance(leaf, Conv)]
    if len(found) != 1:
        raise RefusedError(f"{len(found)} layers remain of {type(module).__name__}")
    return found[0]


def _trains(module: nn.Module) -> bool:
    return any(part.training for part in module.modules())


def _captured(module: nn.Module, example: Tensor) -> Capture:
    found = capture_all(module, (example,), to_edit=False)
    whole = [capture for capture in found.captures if capture.path == ""]
    if whole:
        return whole[0]
    reasons = "; ".join(f"{path or 'itself'}: {reason}" for path, reason in found.failures.items())
    raise NotAffineError(
        f"{type(module).__name__} cannot be followed: {reasons or 'it has no forward'}"
    )


def _simplified(
    found: Capture, shapes: Shapes | None = None, *, allow_growth: bool = True
) -> tuple[Rewrite, Replay, Operator] | None:
    """Return what the module's output is, as few operators on its input, if it is affine."""
    lifter = Lifter.of(found, shapes)
    output = next(node for node in found.graph.nodes if node.op == "output")
    region = Regions(lifter).region(cast(fx.Node, output.args[0]))
    if region is None or [source.op for source in region.inputs] != ["placeholder"]:
        return None
    replay = Replay()
    return simplify(replay.stand_in(region.op), allow_growth=allow_growth), replay, region.op


def _as_conv(op: Operator) -> Conv | None:
    parts = chain(op)
    conv = parts[-1]
    return conv if len(parts) == 2 and isinstance(conv, Conv) else None


def _reasons(rewrite: Rewrite) -> str:
    reasons = dict.fromkeys(refusal.reason for refusal in rewrite.refusals)
    return "; ".join(reasons) or "no rule makes one of its parts"
