"""The proof that goes with a result: the fold in float64, and the very weights that are written."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from refold.equivalence.copies import cast_inputs, in_float64
from refold.equivalence.verifying import Equivalence, verify
from refold.inputs import Arguments


@dataclass(frozen=True)
class Proof:
    """Two checks: `exact` is of a fold done wholly in float64, `shipped` of the rounded weights."""

    exact: Equivalence
    shipped: Equivalence

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {"exact": self.exact.to_dict(), "shipped": self.shipped.to_dict()}

    def __str__(self) -> str:
        """Say both errors in one line."""
        exact, shipped = self.exact, self.shipped
        verdict = "equal" if exact and shipped else "not equal"
        return (
            f"{verdict}: largest error {exact.max_rel_error:.1e} in float64 over "
            f"{len(exact.trials)} inputs; {shipped.max_rel_error:.1e} with the weights as written"
        )


def prove(
    model: nn.Module,
    folded: nn.Module,
    inputs: Arguments,
    fold: Callable[[nn.Module, Any], nn.Module],
) -> Proof:
    """Check a folded network against its original, and the same fold of a float64 copy to 1e-9.

    Args:
        model: the original.
        folded: what a verb made of it.
        inputs: that both accept.
        fold: does the same to another model, given its inputs.

    Raises:
        NotEquivalentError: if either differs.
        InputError: if it has no float64 form, as of quantized layers.

    Examples:
        >>> import torch
        >>> from refold.folding import reparameterize
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()
        >>> x = torch.randn(1, 1, 5, 5)
        >>> prove(net, reparameterize(net, x), (x,), reparameterize).exact.max_rel_error < 1e-9
        True
    """
    wide = copy.deepcopy(model).double()
    exactly = cast_inputs(inputs, torch.float64)
    exact = verify(wide, in_float64(partial(fold, wide, exactly)), exactly).check()
    del wide
    gc.collect()  # graphs refer to themselves and hold the weights: gigabytes of a large network
    return Proof(exact, verify(model, folded, inputs).check())
