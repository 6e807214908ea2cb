"""What others make of a network, for `refold bench --peers`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from refold.cli.subject import Subject
from refold.errors import one_line

if TYPE_CHECKING:
    from torch import nn

_TOLERANCE = 1e-3  # of float32 answers: a peer that changes more computes something else


def peers_of(subject: Subject) -> tuple[dict[str, nn.Module], list[str]]:
    """Return a network as its peers leave it, by the peer's name, and why one is missing.

    A peer that changes nothing, or that this network does not have, is left out.
    """
    made: dict[str, nn.Module] = {}
    missing: list[str] = []
    converted = cache(partial(_converted, subject.model))
    makers: dict[str, Callable[[], nn.Module | None]] = {
        "timm": converted,
        "timm + fx.fuse": lambda: _fused(converted()),
        "switch_to_deploy": partial(_switched, subject.model),
        "plain": partial(_plain, subject),
    }
    for name, make in makers.items():
        try:
            found = make()
            if found is None or (name.startswith("timm") and _is_unchanged(subject.model, found)):
                continue
            error = 0.0 if name == "plain" else _difference(subject, found)
        except Exception as reason:  # whatever a peer cannot do is a result, not an accident
            missing.append(f"{name}: {one_line(reason)}")
            continue
        if error > _TOLERANCE:
            missing.append(f"{name}: gives another answer (relative error {error:.1e})")
        else:
            made[name] = found
    return made, missing


def _converted(model: nn.Module) -> nn.Module:
    from timm.utils.model import reparameterize_model

    return reparameterize_model(copy.deepcopy(model)).eval()


def _fused(model: nn.Module) -> nn.Module:
    from torch.fx.experimental.optimization import fuse

    return fuse(model)  # which works on a copy


def _switched(model: nn.Module) -> nn.Module | None:
    """Call `switch_to_deploy`, which the blocks of many authors have."""
    copied = copy.deepcopy(model)
    blocks = [part for part in copied.modules() if hasattr(part, "switch_to_deploy")]
    for block in blocks:
        switch: Any = block.switch_to_deploy
        switch()
    return copied if blocks else None


def _plain(subject: Subject) -> nn.Module | None:
    """Return the network written by hand in its plain form, where one of ours has it."""
    import refold

    if subject.name not in refold.list_models():
        return None
    classes = getattr(subject.model, "num_classes", None)
    options = {} if classes is None else {"num_classes": classes}
    return refold.create_model(subject.name, deploy=True, **options).eval()


def _is_unchanged(before: nn.Module, after: nn.Module) -> bool:
    return len(list(after.modules())) == len(list(before.modules()))


def _difference(subject: Subject, other: nn.Module) -> float:
    """Return the relative error of another network's answer on the example."""
    import torch

    from refold.equivalence import compare, relative_errors

    with torch.no_grad():
        wanted, found = (model(*subject.example_inputs) for model in (subject.model, other))
    return relative_errors([compare(wanted, found)])[0][0]
