"""`refold.report`: fold a network, prove it, and show what happened to it."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from refold.equivalence import prove
from refold.errors import InputError
from refold.files import require_named, require_place
from refold.folding import reparameterize
from refold.inputs import required
from refold.planning import plan
from refold.reporting.comparison import Comparison
from refold.reporting.page import write_report

PAGES = (".html", ".htm")


def report(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any,
    *,
    name: str | None = None,
    allow_growth: bool = False,
    measure: bool = False,
) -> Path:
    """Write an HTML page that shows a network before and after folding, and check the fold.

    The page is one file that asks nothing of the network or of the internet: before and after side
    by side; for every layer the branches that became it, their kernels and the float64 error; what
    stayed and why; parameters and multiply-adds by stage; ranges and outliers of the weights.

    Args:
        model: Any module in eval mode; it stays as it is.
        path: The file to create or replace, such as `report.html`.
        example_inputs: A tensor, a tuple or list of arguments, or a mapping of them by name.
        name: What the page calls the network; the name of its class if None.
        allow_growth: Also make merges that need more multiply-adds than their parts.
        measure: Also time both networks, step by step.

    Returns:
        The path.

    Raises:
        RefusedError: When the model is in training mode.
        NotEquivalentError: When the fold is not equal in float64.
        InputError: When the model cannot run on the example, the file is not called `.html`, or its
            place cannot be written.

    Examples:
        >>> import tempfile, torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = report(net, f"{folder}/net.html", torch.zeros(1, 3, 8, 8))
        ...     page.read_text()[:15]
        '<!DOCTYPE html>'
    """
    require_named("path", path)
    if Path(path).suffix.lower() not in PAGES:
        raise InputError(f"{path} is no page: end it in {' or '.join(PAGES)}")
    require_place(path)
    inputs = required(model, example_inputs)
    fold = partial(reparameterize, allow_growth=allow_growth)
    account = plan(model, inputs, allow_growth=allow_growth)
    subject = Comparison(
        name=name or type(model).__name__,
        before=model,
        after=account.model,
        inputs=inputs,
        account=account,
        fold=fold,
        proof=prove(model, account.model, inputs, fold),
        measure=measure,
    )
    return write_report(subject, path)
