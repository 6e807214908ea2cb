"""The main verb: a trained network in, the plain equal network out."""

from __future__ import annotations

from typing import Any

from torch import nn

from refold.graph import fold_model
from refold.inputs import arguments


def reparameterize(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    allow_growth: bool = False,
    inplace: bool = False,
    check: bool = True,
    drop_unused: bool = False,
) -> nn.Module:
    """Return the same function with every branch, norm and scale folded into plain layers.

    The result is an ordinary module: it trains, copies, saves and exports; modules that did not
    change keep their names, classes and methods. Computed in float64, rounded once to the model's
    precision.

    Args:
        model: any module in eval mode, with any wrapper (DDP, EMA, torch.compile) around it.
        example_inputs: a tensor, a tuple or list of the model's arguments, or a mapping of
            arguments by name; folds that depend on shapes need it.
        allow_growth: also make merges that need more multiply-adds than their parts.
        inplace: change `model` itself instead of returning a copy.
        check: run both forms once, on the example or on random numbers of a shape that fits; a
            step that they differ by is undone. False compares errors and shapes alone.
        drop_unused: leave out the parts that no recorded call runs, or whose value nobody reads,
            such as heads for training; `refold.plan` lists them.

    Raises:
        RefusedError: when the model is in training mode.
        InputError: when it is not a module, or cannot run on the example.

    Exact when:
        always: what is not exact for every input, borders included, is left as it is.
            `refold.plan` says what and why.

    Examples:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)).eval()
        >>> reparameterize(net)
        Sequential(
          (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
          (1): Identity()
        )
    """
    inputs = arguments(model, example_inputs)
    return fold_model(
        model,
        inputs,
        allow_growth=allow_growth,
        inplace=inplace,
        check=check,
        drop_unused=drop_unused,
    ).model
